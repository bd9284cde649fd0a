//! Two ways out: the program's output by the PL011, the kernel's log by semihosting.
//!
//! QEMU connects the first to stdout and the second to stderr. A log line is put together in a buffer and handed
//! over as one write, so that lines of the kernel and of the script do not mix within a line.

use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use arm_pl011_uart::{DataBits, LineConfig, Parity, StopBits, Uart, UniqueMmioPointer};
use ebbtide::sync::Spin;

use super::mmu;

/// The clock that QEMU gives its UART, in hertz.
const UART_CLOCK: u32 = 24_000_000;

static UART: Spin<Option<Uart<'static>>> = Spin::new(None);
static QUIET: AtomicBool = AtomicBool::new(false);

/// Takes the UART at a physical address.
///
/// # Safety
/// It is a PL011, mapped as device memory in the linear map, and used by nothing else.
pub unsafe fn start(uart: u64) -> Result<(), &'static str> {
    let registers = NonNull::new(mmu::linear(uart).cast()).ok_or("the UART has no address")?;
    // SAFETY: the caller's promise.
    let mut driver = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
    driver.enable(line, 115_200, UART_CLOCK).map_err(|_| "the UART cannot be enabled")?;
    *UART.lock() = Some(driver);
    Ok(())
}

/// The program's output, byte for byte.
pub fn write_program(bytes: &[u8]) {
    if let Some(uart) = UART.lock().as_mut() {
        for &byte in bytes {
            while uart.is_tx_fifo_full() {}
            uart.write_word(byte);
        }
    }
}

/// Bytes to the host's stderr, as they are.
pub fn write_host(bytes: &[u8]) {
    if let Ok(mut stderr) = semihosting::io::stderr() {
        // There is nobody to tell when the host does not take them.
        let _ = semihosting::io::Write::write_all(&mut stderr, bytes);
    }
}

/// From now on only warnings and deaths are logged.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether only warnings and deaths are logged.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// One line of at most 240 bytes; the rest is cut off.
struct Line {
    bytes: [u8; 240],
    used: usize,
}

impl Line {
    fn start() -> Self {
        let mut line = Self { bytes: [0; 240], used: 0 };
        let _ = line.write_str("ebbtide: ");
        line
    }

    fn finish(&mut self) {
        self.bytes[self.used] = b'\n';
        write_host(&self.bytes[..=self.used]);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays for the line's end.
        let room = self.bytes.len() - 1 - self.used;
        let taken = text.len().min(room);
        self.bytes[self.used..][..taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.used += taken;
        Ok(())
    }
}

/// One line of the log, whatever the verbosity.
pub fn death(what: fmt::Arguments<'_>) {
    let mut line = Line::start();
    // `Line` never fails.
    let _ = line.write_fmt(what);
    line.finish();
}

/// Several lines of the log, whatever the verbosity: every line break ends one.
pub fn block(what: fmt::Arguments<'_>) {
    /// The line that is being put together.
    struct Lines(Line);
    impl Write for Lines {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let mut pieces = text.split('\n');
            self.0.write_str(pieces.next().unwrap_or_default())?;
            for piece in pieces {
                self.0.finish();
                self.0 = Line::start();
                self.0.write_str(piece)?;
            }
            Ok(())
        }
    }
    let mut lines = Lines(Line::start());
    // `Line` never fails.
    let _ = lines.write_fmt(what);
    lines.0.finish();
}

/// Logs a line unless the kernel was told to be quiet.
macro_rules! log {
    ($($part:tt)*) => {
        if !$crate::kernel::console::is_quiet() {
            $crate::kernel::console::death(format_args!($($part)*));
        }
    };
}
pub(crate) use log;

/// Logs a line that is never left out.
macro_rules! alert {
    ($($part:tt)*) => { $crate::kernel::console::death(format_args!($($part)*)) };
}
pub(crate) use alert;

/// Ends the machine with an exit status.
pub fn exit(status: i32) -> ! {
    semihosting::process::exit(status)
}
