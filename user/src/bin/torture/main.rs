//! `torture [--mib N] [--seed S] [--ops K] [--bear TRIES]`: a random walk over one large anonymous area, with a small
//! model of what it must hold.
//!
//! The model has a record for each unit (a page of the kernel's): whether it is mapped, with what permission,
//! whether it may have tags, which contents and which tags were last written, and one later store of a word.
//! Contents and tags are formulas of a number (see `user::model`), so that a record takes 24 bytes and the
//! area can be larger than the machine. An operation takes a run of units and does one thing to those of them
//! that allow it: write data, write tags, store one word, check, access through a tagged pointer with
//! synchronous checks on, page out, MADV_DONTNEED, mprotect to any permission and back, give untagged pages
//! PROT_MTE, munmap, mmap over it. In the end everything is checked. The walk depends on the seed alone.
//!
//! With `--bear TRIES` it brings each unit in by MADV_POPULATE_READ before it touches it. One that cannot be read back,
//! so often as it tries, is given up by MADV_DONTNEED, and counted: so the walk goes on over a device that fails or
//! damages pages. Its own memory it cannot bear to lose: the area has to be small enough that nothing but what it pages
//! out leaves.
//!
//! The records lie in anonymous memory too, so the program's own bookkeeping is swapped as well. A call that
//! fails ends the walk: nothing that it does may fail while there is memory or swap left.
//!
//! Exit status 0, or 1 if a byte or a tag was wrong, a call failed, or more units were given up than came back damaged.

#![cfg_attr(target_os = "none", no_std, no_main)]

mod operations;
mod unit;
mod walk;

use user::{
    args::{self, BadArgs, Env},
    eprintln,
    io::Progress,
    println, sys,
};
use walk::Walk;

user::program!(run);

fn run(env: &Env) -> i32 {
    let (mib, seed, ops, tries) = match options(env) {
        Ok(options) => options,
        Err(BadArgs) => {
            eprintln!("usage: torture [--mib N] [--seed S] [--ops K] [--bear TRIES]");
            return BadArgs::STATUS;
        }
    };
    println!("torture: {mib} MiB, seed {seed}, operations {ops}{}", if env.has_mte() { "" } else { ", no MTE" });
    let mut walk = match Walk::new(env, mib, seed, tries) {
        Ok(walk) => walk,
        Err(error) => {
            eprintln!("mmap of {mib} MiB: {error}");
            return 1;
        }
    };
    let mut progress = Progress::new("random walk", ops);
    for op in 0..ops {
        if let Err(error) = walk.step() {
            drop(progress);
            let (name, units) = walk.doing();
            eprintln!("operation {op}, {name} of units {units:?}: {error}");
            return 1;
        }
        progress.at(op);
    }
    drop(progress);
    if let Err(error) = walk.check_everything() {
        eprintln!("mprotect for the last check: {error}");
        return 1;
    }
    walk.conclude()
}

fn options(env: &Env) -> Result<(usize, u64, usize, usize), BadArgs> {
    let [mib, seed, ops, tries] = env.options(["--mib", "--seed", "--ops", "--bear"])?;
    // Half as much again as the machine has, so that the walk itself makes pressure.
    let more_than_ram = sys::ram().map_or(64, |ram| (ram.total >> 20) as usize * 3 / 2);
    let mib: usize = args::number(mib, more_than_ram)?;
    if !(1..=1 << 20).contains(&mib) {
        eprintln!("--mib {mib}: from 1 to {}", 1 << 20);
        return Err(BadArgs);
    }
    Ok((mib, args::number(seed, 1)?, args::number(ops, 10_000)?, args::number(tries, 0)?))
}
