//! Paths that programs name things by.

use super::Errno;
use crate::kernel::uaccess;

/// Longest path, with its end.
const PATH_MAX: usize = 4096;

/// A program's path: all of it, if it has no more than `N` bytes, and only its start otherwise.
pub struct Path<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Path<N> {
    /// Reads a path.
    ///
    /// # Errors
    /// EFAULT, ENAMETOOLONG; ENOENT for an empty one.
    pub fn read(pointer: u64) -> Result<Self, Errno> {
        let mut bytes = [0; N];
        for length in 0..PATH_MAX {
            let mut byte = [0];
            uaccess::read(pointer.wrapping_add(length as u64), &mut byte)?;
            match byte {
                [0] if length == 0 => return Err(Errno::ENOENT),
                [0] => return Ok(Self { bytes, length }),
                [byte] => bytes.get_mut(length).into_iter().for_each(|place| *place = byte),
            }
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// The path.
    ///
    /// # Errors
    /// ENOENT: it is longer than that of anything there is.
    pub fn get(&self) -> Result<&[u8], Errno> {
        self.bytes.get(..self.length).ok_or(Errno::ENOENT)
    }
}
