//! Hooks, waiting, devices, and programs that run beside the core.

use super::*;
use crate::swap::{DeviceError, DeviceFlags, Progress, SwapDevice};
use crate::sync::Ordering::Relaxed;

#[test]
fn an_idle_hook_ends_a_wait() {
    let emu = Emu::<K4>::new(EmuConfig::default());
    static WORD: AtomicU32 = AtomicU32::new(1);
    emu.set_idle(|_| WORD.store(2, Relaxed));
    while WORD.load(Relaxed) == 1 {
        emu.wait(&WORD, 1);
    }
}

#[test]
#[should_panic = "deadlock"]
fn a_wait_for_oneself_is_a_deadlock() {
    let emu = Emu::<K4>::new(EmuConfig { patience: 50, ..EmuConfig::default() });
    let word = AtomicU32::new(1);
    while word.load(Relaxed) == 1 {
        emu.wait(&word, 1);
    }
}

#[test]
#[should_panic = "law LiveEntryStored broken"]
fn a_broken_law_fails_the_test() {
    let rig = Rig::<K4>::quiet();
    let at = rig.map(VA, rig.page(), PAGE);
    rig.emu.store_entry(at, 0);
}

#[test]
fn programs_run_between_the_steps_and_lose_no_store() {
    for seed in seeds() {
        let rig = Rig::<K4>::full(seed);
        let first = rig.zeroed(16).start();
        let at = rig.map_group(VA, first, PAGE & !ACCESSED | READ_ONLY | DBM);
        let stored = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&stored);
        rig.emu.set_background(move |emu, dice| {
            let value = count.load(Relaxed) + 1;
            if emu.access(1 + dice as usize % 3, VA + (dice >> 8) % 16 * 0x1000, Access::Store(value)).is_ok() {
                count.store(value, Relaxed);
            }
        });
        // Unfold and fold again while stores land; at the end the table says whether any did.
        for round in 0..4 {
            let raws: Vec<u64> = (0..16).map(|page| rig.emu.exchange_entry(at.offset(page), 0)).collect();
            rig.flush(VA, 16);
            let before = stored.load(Relaxed);
            let clean = raws.iter().all(|raw| raw & READ_ONLY != 0);
            assert!(!(clean && round == 0 && before > 0), "a store left no trace");
            let bits = raws.iter().fold(CONTIGUOUS, |bits, raw| if raw & READ_ONLY == 0 { bits | 1 } else { bits });
            let attributes = PAGE | DBM | if bits & 1 == 0 { READ_ONLY } else { 0 };
            rig.map_group(VA, first, attributes);
            rig.emu.check_all_groups();
        }
        rig.unmap_group(VA);
        let last = stored.load(Relaxed);
        let found = (0..16).map(|page| rig.emu.peek_word(first.offset(page), 0)).max();
        assert_eq!(found, Some(last));
    }
}

#[test]
fn real_threads_share_the_machine() {
    let rig = Rig::<K4>::full(9);
    let first = rig.zeroed(4).start();
    rig.map_pages(VA, first, 4, PAGE | READ_ONLY | DBM);
    let emu = &rig.emu;
    std::thread::scope(|scope| {
        for cpu in 0..4_usize {
            scope.spawn(move || {
                emu.set_cpu(cpu);
                let mut user = emu.user(cpu, |_| Ok::<_, ()>(()));
                for value in 0..500 {
                    user.store(VA + ((cpu as u64) << 12), value).unwrap();
                    assert_eq!(user.load(VA + ((cpu as u64) << 12)), Ok(value));
                }
            });
        }
    });
}

#[test]
fn the_device_keeps_pages_and_fails_when_asked() {
    let rig = Rig::<K4>::quiet();
    let (device, run, back) = (TestDevice::new(8, DeviceFlags::SYNCHRONOUS), rig.frames(2), rig.zeroed(2));
    rig.emu.import_page(run.start(), &[1; 512]);
    rig.emu.import_page(run.start().offset(1), &[2; 512]);
    assert_eq!(device.write(&rig.emu, run, 3), Ok(Progress::Done));
    assert_eq!(device.read(&rig.emu, 3, back), Ok(Progress::Done));
    assert_eq!(rig.emu.peek_word(back.start().offset(1), 4088), 2);
    device.fail_after(1);
    assert_eq!(device.read(&rig.emu, 3, back), Ok(Progress::Done));
    assert_eq!(device.write(&rig.emu, run, 3), Err(DeviceError));
    assert_eq!(device.write(&rig.emu, run, 3), Ok(Progress::Done));
    device.corrupt_after(0);
    assert_eq!(device.read(&rig.emu, 3, back), Ok(Progress::Done));
    assert_eq!(rig.emu.peek_word(back.start(), 0), 0);
    assert_eq!(device.read(&rig.emu, 0, back), Err(DeviceError), "never written");
    assert_eq!(device.read(&rig.emu, 7, back), Err(DeviceError), "beyond the end");
    assert_eq!(device.operations(), (5, 3));
    device.discard(3);
    assert_eq!((device.page(3), device.page(4).map(|words| words[0])), (None, Some(2)));
}

#[test]
#[ignore = "prints a measurement"]
fn cost_of_a_step() {
    for adversary in [Adversary::Quiet, Adversary::Full] {
        let rig = Rig::<K4>::new(EmuConfig { cpus: 4, adversary, ..EmuConfig::default() });
        let frame = rig.page();
        let at = rig.map(VA, frame, PAGE);
        let time = |what: &str, body: &dyn Fn()| {
            let start = std::time::Instant::now();
            (0..100_000).for_each(|_| body());
            std::println!("{adversary:?} {what}: {} ns", start.elapsed().as_nanos() / 100_000);
        };
        let raw = rig.emu.load_entry(at);
        time("load_entry", &|| _ = rig.emu.load_entry(at));
        time("fence_contents", &|| rig.emu.fence_contents());
        time("window", &|| _ = rig.emu.window(rig.root));
        time("access", &|| _ = rig.load(1, VA));
        time("unmap, flush, map", &|| {
            rig.emu.exchange_entry(at, 0);
            rig.flush(VA, 1);
            rig.emu.store_entry(at, raw);
        });
    }
}
