//! From the kernel's first instruction at EL0 to the program's `main`, and the way out by panic.

/// Makes `fn(&Env) -> i32` the program: its return value is the exit status.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        #[cfg(target_os = "none")]
        // SAFETY: the only definition of this symbol in a program; `start` declares the same type.
        #[unsafe(no_mangle)]
        fn ebbtide_program(env: &$crate::args::Env) -> i32 {
            $main(env)
        }

        #[cfg(not(target_os = "none"))]
        fn main() {
            $crate::start::host($main)
        }
    };
}

/// The host's `main` of every program.
#[cfg(not(target_os = "none"))]
pub fn host(_program: fn(&crate::args::Env) -> i32) {
    host::eprintln!("this program runs at EL0: ./qemu-run.sh -- NAME [ARG...]");
    host::process::exit(2);
}

#[cfg(target_os = "none")]
mod el0 {
    use core::panic::PanicInfo;

    use crate::{args::Env, eprintln, sys};

    /// Exit status after a panic (`EX_SOFTWARE` of sysexits).
    const PANIC_STATUS: i32 = 70;

    // The stack pointer is the only argument: argc, argv, envp and auxv lie there. A zero frame record ends
    // every backtrace here.
    core::arch::global_asm!(
        ".pushsection .text._start, \"ax\"",
        ".globl _start",
        ".type _start, %function",
        "_start:",
        "mov x29, xzr",
        "mov x30, xzr",
        "mov x0, sp",
        "b {start}",
        ".size _start, . - _start",
        ".popsection",
        start = sym start,
    );

    unsafe extern "Rust" {
        fn ebbtide_program(env: &Env) -> i32;
    }

    extern "C" fn start(stack: *const usize) -> ! {
        // SAFETY: `_start` passes the initial stack pointer, laid out as the ELF ABI says, once.
        let env = unsafe { Env::from_stack(stack) };
        // SAFETY: `program!` defines the function with this signature.
        let status = unsafe { ebbtide_program(&env) };
        sys::exit(status)
    }

    #[panic_handler]
    fn panic(info: &PanicInfo) -> ! {
        eprintln!("{info}");
        sys::exit(PANIC_STATUS)
    }
}
