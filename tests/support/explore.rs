//! Many schedules of one scene: shuttle chooses at each step who goes on. The variables that steer it are described
//! in `tests/races.rs`.

use std::sync::Arc;

use ebbtide::sync::{begin_task, stepping};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, Runner};

use super::Dice;

/// Schedules of a race that need no more than seconds for all races together.
const BOUNDED: usize = 800;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Whether races only tell their names: a long run gives each a process of its own.
fn is_list() -> bool {
    std::env::var("EBBTIDE_LIST").is_ok()
}

/// Whether all schedules of all races are run: then what should be found is found.
pub fn is_whole() -> bool {
    !is_list() && ["EBBTIDE_RACE", "EBBTIDE_REPLAY"].iter().all(|name| std::env::var(name).is_err())
}

/// Says which race it was that failed.
pub struct Told<'a>(pub &'a str);

impl<'a> Told<'a> {
    /// Says at once what a schedule is about that runs alone: one that never ends has no other chance.
    pub fn of_a_schedule(told: &'a str) -> Self {
        if std::env::var("EBBTIDE_REPLAY").is_ok() {
            eprintln!("the schedule's world: {told}");
        }
        Self(told)
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the race was: {}", self.0);
        }
    }
}

/// Lets a task go on for a while, and then chooses among the others. How long a while is differs by schedule: CPUs that
/// take turns at every step, and one that does all of a call while another is between two of its steps.
#[derive(Debug)]
struct Bursts {
    /// Its rounds, and its random data.
    rounds: RandomScheduler,
    dice: Dice,
    /// One step in so many ends a burst, on average.
    length: u64,
}

impl Bursts {
    fn new(seed: u64, schedules: usize) -> Self {
        Self { rounds: RandomScheduler::new_from_seed(seed, schedules), dice: Dice::new(seed), length: 1 }
    }
}

impl Scheduler for Bursts {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.length = 1 << self.dice.below(10);
        self.rounds.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        let goes_on = !is_yielding && self.dice.below(self.length) != 0;
        if let Some(current) = current.filter(|&current| goes_on && runnable.iter().any(|task| task.id() == current)) {
            return Some(current);
        }
        let others = runnable.iter().filter(|task| Some(task.id()) != current).count();
        let choice = self.dice.below(others.max(1) as u64) as usize;
        let mut tasks = runnable.iter().filter(|task| others == 0 || Some(task.id()) != current);
        tasks.nth(choice).map(|task| task.id())
    }

    fn next_u64(&mut self) -> u64 {
        self.rounds.next_u64()
    }
}

/// Runs a scene under many schedules.
pub fn explore(race: &str, scene: impl Fn() + Send + Sync + 'static) {
    explore_some(race, BOUNDED, scene);
}

/// [`explore`], with so many schedules unless a variable says how many.
pub fn explore_some(race: &str, bounded: usize, scene: impl Fn() + Send + Sync + 'static) {
    if std::env::var("EBBTIDE_RACE").is_ok_and(|part| !race.contains(&part)) {
        return;
    }
    if is_list() {
        return println!("race {race}");
    }
    let mut config = Config::new();
    // The library's arrays, and no release build.
    config.stack_size = 1 << 19;
    config.failure_persistence = FailurePersistence::File(Some(env!("CARGO_TARGET_TMPDIR").into()));
    let _told = Told(race);
    let scene = Arc::new(scene);
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let scene = Arc::clone(&scene);
        Runner::new(scheduler, config.clone()).run(move || scene());
    };
    if let Ok(file) = std::env::var("EBBTIDE_REPLAY") {
        return run(Box::new(ReplayScheduler::new_from_file(&file).expect("the file of a schedule")));
    }
    let schedules = variable("EBBTIDE_SCHEDULES").map_or(bounded, |schedules| schedules as usize);
    let seed = variable("EBBTIDE_SEED").unwrap_or(1);
    run(Box::new(Bursts::new(seed, schedules.div_ceil(2))));
    run(Box::new(PctScheduler::new_from_seed(seed, 3, schedules / 2)));
}

/// Lets tasks run, each on a CPU of its own number, until all are done.
pub fn meet(tasks: &[&(dyn Fn(usize) + Sync)]) {
    stepping(|| {
        shuttle::thread::scope(|scope| {
            for (cpu, task) in tasks.iter().enumerate() {
                scope.spawn(move || {
                    begin_task(cpu + 1);
                    task(cpu);
                });
            }
        });
    });
}
