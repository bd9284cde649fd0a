//! Tells the linker where the kernel goes. The library, and everything built for
//! a host, needs nothing from here.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=linker.ld");
    println!("cargo:rerun-if-changed=boot");
    let for_kernel = env::var("CARGO_FEATURE_KERNEL").is_ok();
    let bare_metal = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if for_kernel && bare_metal {
        let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo:rustc-link-arg-bin=ebbtide-kernel=-T{root}/linker.ld");
    }
}
