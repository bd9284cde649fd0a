//! Hands the linker script to the programs, when they are built for bare AArch64.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=user.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo:rustc-link-arg-bins=-T{folder}/user.ld");
    }
}
