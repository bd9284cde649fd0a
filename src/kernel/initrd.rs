//! The files that came along: a cpio archive (newc).
//!
//! `init` is the program, `argv` and `envp` its strings, each ended by a NUL, `stats-path` the host file for the
//! statistics, `end-path` one that is made when the program has ended, `bin/*` the built-in programs.

/// The archive.
#[derive(Copy, Clone)]
pub struct Files {
    archive: &'static [u8],
}

impl Files {
    /// Takes an archive's bytes.
    pub fn new(archive: &'static [u8]) -> Self {
        Self { archive }
    }

    /// A file's contents.
    pub fn get(&self, name: &str) -> Option<&'static [u8]> {
        cpio_reader::iter_files(self.archive).find(|file| file.name() == name).map(|file| file.file())
    }

    /// The strings of a file, each without its NUL.
    pub fn strings(&self, name: &str) -> impl Iterator<Item = &'static [u8]> + Clone {
        let bytes = self.get(name).unwrap_or(&[]);
        let ended = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        // An empty file has no string; a lone NUL has one, the empty one.
        let strings = if bytes.is_empty() { None } else { Some(ended.split(|&byte| byte == 0)) };
        strings.into_iter().flatten()
    }
}
