//! More spaces than identifiers: a space that comes back has another one, and no CPU sees through an old one.

mod support;

use ebbtide::Space;
use ebbtide::addr::VirtAddr;
use ebbtide::granule::{Granule, K4};
use ebbtide::machine::emu::{Access, Adversary};
use ebbtide::reclaim::Advice;
use ebbtide::space::Protection;

use support::stage::meanwhile;
use support::{Dice, RW, Rig, Setup, Stage};

const BASE: u64 = 0x40_0000;
const PAGE: u64 = K4::SIZE as u64;
/// What a CPU with identifiers of 8 bits has, without that of the empty root.
const IDENTIFIERS: usize = 255;

type Made = Space<Stage<K4>>;

fn rig(cpus: usize, adversary: Adversary, seed: u64) -> Rig {
    let mut rig = Rig::new(Setup { frames: 4096, cpus, seed, adversary, asid_bits: 8, ..Setup::default() });
    // The frames of their nodes stay.
    let spaces: Vec<Made> = (0..2 * IDENTIFIERS + 2).map(|_| rig.try_space().unwrap()).collect();
    spaces.into_iter().for_each(|space| assert!(space.destroy(&rig.mm).is_ok()));
    rig.fresh = rig.mm.totals();
    rig
}

fn made(rig: &Rig) -> Made {
    let space = rig.try_space().unwrap();
    rig.map(&space, BASE, 4, RW);
    space
}

#[test]
fn any_number_of_spaces_take_turns() {
    for seed in 0..4 {
        const CPUS: usize = 3;
        let rig = rig(CPUS, Adversary::Full, seed);
        let mut dice = Dice::new(seed);
        let mut spaces: Vec<(Made, u64)> = (0..IDENTIFIERS + 45).map(|_| (made(&rig), 0)).collect();
        for turn in 1..1500u64 {
            let cpu = dice.below(CPUS as u64) as usize;
            let (space, word) = &mut spaces[dice.below(300) as usize];
            rig.activate(cpu, space);
            let program = rig.program_on(cpu, space);
            assert_eq!(program.load(BASE), Ok(*word));
            match dice.below(4) {
                0 => {
                    rig.emu()
                        .on_cpu(cpu, || space.advise(&rig.mm, VirtAddr::new(BASE), PAGE, Advice::DontNeed).unwrap());
                    *word = 0;
                }
                1 => {
                    let old = std::mem::replace(space, made(&rig));
                    (0..CPUS).for_each(|cpu| rig.idle(cpu));
                    assert!(old.destroy(&rig.mm).is_ok());
                    *word = 0;
                }
                _ => {
                    assert_eq!(program.store(BASE, turn), Ok(()));
                    *word = turn;
                }
            }
        }
        (0..CPUS).for_each(|cpu| rig.idle(cpu));
        spaces.into_iter().for_each(|(space, _)| assert!(space.destroy(&rig.mm).is_ok()));
        rig.check_nothing_leaked();
    }
}

/// A call takes a right, or the page, away. At each of its steps a generation ends, and another CPU enters the space
/// again, which has another identifier then: when the call returns, what it took is gone there as well.
#[test]
fn a_flush_reaches_a_space_that_has_changed_its_identifier() {
    // What a walker sees late is the adversary's choice.
    let adversaries = [(Adversary::Quiet, 0)].into_iter().chain((0..5).map(|seed| (Adversary::Full, seed)));
    for (adversary, seed) in adversaries {
        for (is_running, frees) in [(false, false), (false, true), (true, false), (true, true)] {
            meanwhile(|raise| {
                let rig = rig(3, adversary, seed);
                let space = made(&rig);
                let others: Vec<Made> = (0..IDENTIFIERS).map(|_| made(&rig)).collect();
                rig.activate(0, &space);
                rig.program(&space).store(BASE, 1).unwrap();
                // All identifiers are lent; the next space that runs begins a generation.
                let (last, lent) = others.split_last().unwrap();
                lent.iter().for_each(|other| rig.activate(1, other));
                if !is_running {
                    rig.activate(0, &others[0]);
                }
                let call = || {
                    let start = VirtAddr::new(BASE);
                    if frees {
                        space.unmap(&rig.mm, start, PAGE).unwrap();
                    } else {
                        space.protect(&rig.mm, start, PAGE, Protection::READ).unwrap();
                    }
                };
                raise(&mut || call(), &|| {
                    rig.activate(1, last);
                    rig.activate(1, &space);
                    let _ = rig.emu().access(1, BASE, Access::Store(2));
                });
                assert!(rig.emu().access(1, BASE, Access::Store(3)).is_err(), "a store after the call");
                assert_eq!(rig.program_on(1, &space).load(BASE).is_ok_and(|word| word < 3), !frees);
                (0..3).for_each(|cpu| rig.idle(cpu));
                others.into_iter().chain([space]).for_each(|space| assert!(space.destroy(&rig.mm).is_ok()));
                rig.check_nothing_leaked();
            });
        }
    }
}

/// At each step of an activation a generation begins on another CPU, and the identifier that this CPU had is lent anew.
#[test]
fn an_activation_is_interrupted_by_a_new_generation() {
    for adversary in [Adversary::Quiet, Adversary::Full] {
        meanwhile(|raise| {
            let rig = rig(3, adversary, 11);
            let others: Vec<Made> = (0..IDENTIFIERS).map(|_| made(&rig)).collect();
            let (old, new) = (made(&rig), made(&rig));
            rig.activate(2, &new);
            rig.program_on(2, &new).store(BASE, 1).unwrap();
            rig.activate(2, &others[0]);
            rig.activate(0, &old);
            rig.program(&old).store(BASE, 2).unwrap();
            let (lent, next) = others.split_at(IDENTIFIERS - 2);
            lent.iter().for_each(|other| rig.activate(1, other));
            raise(&mut || rig.activate(0, &new), &|| {
                for other in next.iter().chain(&lent[..4]) {
                    rig.activate(1, other);
                    let _ = rig.emu().access(1, BASE, Access::Load);
                }
            });
            assert_eq!(rig.program(&new).load(BASE), Ok(1));
            rig.activate(0, &old);
            assert_eq!(rig.program(&old).load(BASE), Ok(2));
            (0..3).for_each(|cpu| rig.idle(cpu));
            others.into_iter().chain([old, new]).for_each(|space| assert!(space.destroy(&rig.mm).is_ok()));
            rig.check_nothing_leaked();
        });
    }
}
