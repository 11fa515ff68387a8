//! The life of one generation of a service: a pure machine.
//!
//! ```text
//!               PrepareFailed, not proven                      StartFailed, not proven
//!          ┌────────────────────────────────► Failed ◄────────────────────────────┐
//!  ► Preparing ──Prepared──► Starting ──Started──► Ready ──Unused──► Halting ──Gone──► Idle
//!     ▲    │                  ▲ ▲  │                 │ Lost, 3 × PingMissed    │          │
//!     │    │ PrepareFailed    │ │  │ StartFailed     ▼                        │          │ Called
//!     │    ▼                  │ │  │              Halting ──Gone──┐           │          ▼
//!     └─ Backoff ◄────────────┼─┼──┴──────────────────────────────┤           └─────► Starting
//!           └────Deadline─────┘ └──Deadline── CrashLoop ◄─────────┘ (5 crashes without 5 stable minutes)
//!
//!  PreparedGone is StartFailed that leads back to Preparing: what was prepared is gone, so the pause is followed
//!  by making it again.
//!
//!  Freed: what a Failed one was refused for may be over, and it is prepared, so it is Starting again.
//!  Refused, from anywhere: it may not run here, so it is Failed, after Halting where it has a process.
//!  Stop, from anywhere: what has a process or a job is Halting until Gone, then Stopped; the rest is Stopped at once.
//! ```
//!
//! Here: what follows from what. Not here: doing it (see [`super::task`]), which generation serves.
//! Invariants: no start while a process may live; after `Stop` nothing starts; a generation that was never ready and
//! is not proven fails once and stays failed, and so does one that may not run here.

use std::time::{Duration, Instant};

/// Missed pings in a row before a server without calls is given up.
const STRIKES: u32 = 3;
/// The same while calls run: a server that works on one call at a time can not answer in between.
const STRIKES_BUSY: u32 = 20;
const STABLE: Duration = Duration::from_secs(300);
const CRASHES: u32 = 5;
const CRASH_LOOP_PAUSE: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Fetching and installing.
    Preparing {
        failures: u32,
        crashes: u32,
    },
    /// The process is being started, greeted and asked for its lists.
    Starting {
        crashes: u32,
    },
    Ready {
        since: Instant,
        crashes: u32,
        strikes: u32,
    },
    /// The process, or the job that would make one, is being ended.
    Halting {
        then: Then,
    },
    Idle,
    Backoff {
        until: Instant,
        again: Again,
    },
    CrashLoop {
        until: Instant,
        again: Again,
    },
    Stopped,
    Failed,
}

/// Where `Halting` leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Idle,
    /// A call came while the idle process was ending.
    Wake,
    Crashed {
        crashes: u32,
    },
    /// It may not run here.
    Failed,
    Stopped,
}

/// What `Backoff` repeats, and what it counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Prepare { failures: u32, crashes: u32 },
    Start { crashes: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Prepared,
    PrepareFailed,
    Started,
    /// The start was given up and its process tree is gone.
    StartFailed,
    /// As `StartFailed`, since what was prepared is not there any more.
    PreparedGone,
    /// The process ended or its connection is unusable.
    Lost,
    /// It may not run here (any more): no try could end otherwise. While a job runs, only said by that job's end.
    Refused,
    /// Why it was refused may not hold any more. Only said of one that is prepared.
    Freed,
    PingAnswered,
    PingMissed {
        busy: bool,
    },
    /// Nobody called for as long as the spec allows.
    Unused,
    /// Somebody waits for the service.
    Called,
    /// The time in [`Machine::deadline`] has come.
    Deadline,
    /// The process tree is gone.
    Gone,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Prepare,
    Start,
    /// End the running prepare or start job; it reports a failure when its process is gone.
    Abandon,
    /// Close stdin, then TERM, then KILL; answer `Gone`.
    Halt,
    /// KILL; answer `Gone`.
    Kill,
}

/// One generation's state and what it must remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub state: State,
    /// It has been ready at some time: failures are retried.
    pub proven: bool,
    /// Starts after a crash, since it first became ready.
    pub restarts: u32,
    /// Spreads the pauses of services that crashed together.
    seed: u64,
}

impl Machine {
    /// A new generation and its first effect.
    pub fn new(proven: bool, seed: u64) -> (Self, Effect) {
        let machine = Self { state: State::Preparing { failures: 0, crashes: 0 }, proven, restarts: 0, seed };
        (machine, Effect::Prepare)
    }

    /// When [`Event::Deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Backoff { until, .. } | State::CrashLoop { until, .. } => Some(until),
            _ => None,
        }
    }

    /// No clock, no I/O: `now` comes in, the effect goes out. At most one effect per event.
    pub fn step(&mut self, event: Event, now: Instant) -> Option<Effect> {
        let (state, effect) = match event {
            Event::Stop => self.stop(),
            Event::Refused => self.refused(),
            Event::Called => self.called(),
            Event::Freed => self.freed(),
            Event::Deadline => self.due(now),
            Event::Prepared
            | Event::PrepareFailed
            | Event::Started
            | Event::StartFailed
            | Event::PreparedGone => self.job_done(event, now),
            Event::Gone => self.gone(now),
            Event::Lost | Event::PingMissed { .. } | Event::PingAnswered | Event::Unused => {
                self.observed(event, now)
            }
        };
        self.state = state;
        effect
    }

    fn stop(&self) -> (State, Option<Effect>) {
        let halting = State::Halting { then: Then::Stopped };
        match self.state {
            State::Preparing { .. } | State::Starting { .. } => (halting, Some(Effect::Abandon)),
            State::Ready { .. } => (halting, Some(Effect::Halt)),
            // The halt that is under way goes on; only its outcome changes.
            State::Halting { .. } => (halting, None),
            State::Idle
            | State::Backoff { .. }
            | State::CrashLoop { .. }
            | State::Failed
            | State::Stopped => (State::Stopped, None),
        }
    }

    fn refused(&self) -> (State, Option<Effect>) {
        match self.state {
            State::Ready { .. } => (State::Halting { then: Then::Failed }, Some(Effect::Halt)),
            State::Halting { then: Then::Stopped } | State::Stopped => (self.state, None),
            State::Halting { .. } => (State::Halting { then: Then::Failed }, None),
            _ => (State::Failed, None),
        }
    }

    fn freed(&self) -> (State, Option<Effect>) {
        match self.state {
            State::Failed => (State::Starting { crashes: 0 }, Some(Effect::Start)),
            state => (state, None),
        }
    }

    fn called(&self) -> (State, Option<Effect>) {
        match self.state {
            State::Idle => (State::Starting { crashes: 0 }, Some(Effect::Start)),
            State::Halting { then: Then::Idle } => (State::Halting { then: Then::Wake }, None),
            state => (state, None),
        }
    }

    fn due(&mut self, now: Instant) -> (State, Option<Effect>) {
        match self.state {
            State::Backoff { until, again } | State::CrashLoop { until, again } if now >= until => {
                match again {
                    Again::Prepare { failures, crashes } => {
                        (State::Preparing { failures, crashes }, Some(Effect::Prepare))
                    }
                    Again::Start { crashes } => {
                        self.restarts += 1;
                        (State::Starting { crashes }, Some(Effect::Start))
                    }
                }
            }
            state => (state, None),
        }
    }

    fn job_done(&mut self, event: Event, now: Instant) -> (State, Option<Effect>) {
        match (self.state, event) {
            (State::Preparing { crashes, .. }, Event::Prepared) => {
                (State::Starting { crashes }, Some(Effect::Start))
            }
            (State::Preparing { failures, crashes }, Event::PrepareFailed) if self.proven => {
                let failures = failures.saturating_add(1);
                let until = now + self.pause(failures);
                (State::Backoff { until, again: Again::Prepare { failures, crashes } }, None)
            }
            (State::Starting { crashes }, Event::Started) => {
                self.proven = true;
                (State::Ready { since: now, crashes, strikes: 0 }, None)
            }
            (State::Starting { crashes }, Event::StartFailed) if self.proven => {
                let crashes = crashes.saturating_add(1);
                (self.fallen(crashes, Again::Start { crashes }, now), None)
            }
            (State::Starting { crashes }, Event::PreparedGone) if self.proven => {
                // Counted on through the preparation, or one that always makes the same nothing would go on for ever.
                let crashes = crashes.saturating_add(1);
                (self.fallen(crashes, Again::Prepare { failures: 0, crashes }, now), None)
            }
            (State::Preparing { .. }, Event::PrepareFailed)
            | (State::Starting { .. }, Event::StartFailed | Event::PreparedGone) => (State::Failed, None),
            // It became ready just before it was told to give up.
            (state @ State::Halting { .. }, Event::Started) => (state, Some(Effect::Halt)),
            (State::Halting { .. }, _) => self.gone(now),
            (state, _) => (state, None),
        }
    }

    fn gone(&self, now: Instant) -> (State, Option<Effect>) {
        match self.state {
            State::Halting { then: Then::Idle } => (State::Idle, None),
            State::Halting { then: Then::Wake } => (State::Starting { crashes: 0 }, Some(Effect::Start)),
            State::Halting { then: Then::Crashed { crashes } } => {
                (self.fallen(crashes, Again::Start { crashes }, now), None)
            }
            State::Halting { then: Then::Failed } => (State::Failed, None),
            State::Halting { then: Then::Stopped } => (State::Stopped, None),
            state => (state, None),
        }
    }

    fn observed(&self, event: Event, now: Instant) -> (State, Option<Effect>) {
        let State::Ready { since, crashes, strikes } = self.state else { return (self.state, None) };
        let crashes_now = if now.duration_since(since) >= STABLE { 1 } else { crashes.saturating_add(1) };
        let fall = State::Halting { then: Then::Crashed { crashes: crashes_now } };
        match event {
            Event::Lost => (fall, Some(Effect::Kill)),
            Event::PingMissed { busy } => {
                let strikes = strikes + 1;
                let limit = if busy { STRIKES_BUSY } else { STRIKES };
                if strikes >= limit {
                    (fall, Some(Effect::Kill))
                } else {
                    (State::Ready { since, crashes, strikes }, None)
                }
            }
            Event::PingAnswered => (State::Ready { since, crashes, strikes: 0 }, None),
            Event::Unused => (State::Halting { then: Then::Idle }, Some(Effect::Halt)),
            _ => (self.state, None),
        }
    }

    fn fallen(&self, crashes: u32, again: Again, now: Instant) -> State {
        if crashes >= CRASHES {
            State::CrashLoop { until: now + CRASH_LOOP_PAUSE, again }
        } else {
            State::Backoff { until: now + self.pause(crashes), again }
        }
    }

    /// Doubles from half a second to a minute, spread by a quarter either way.
    fn pause(&self, n: u32) -> Duration {
        let base = FIRST_PAUSE.saturating_mul(1 << n.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
        // SplitMix64: the same service and count give the same pause.
        let mut x = self.seed.wrapping_add(u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let permille = u32::try_from((x >> 32) % 501).unwrap_or(0) + 750;
        (base * permille / 1000).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events() -> Vec<Event> {
        use Event::*;
        let pings = [PingAnswered, PingMissed { busy: false }, PingMissed { busy: true }];
        let mut all = vec![Prepared, PrepareFailed, Started, StartFailed, PreparedGone, Lost, Unused, Called];
        all.extend(pings);
        all.extend([Deadline, Gone, Refused, Freed, Stop]);
        all
    }

    fn states(now: Instant) -> Vec<State> {
        let until = now + Duration::from_secs(9);
        vec![
            State::Preparing { failures: 0, crashes: 0 },
            State::Starting { crashes: 0 },
            State::Ready { since: now, crashes: 0, strikes: 1 },
            State::Halting { then: Then::Idle },
            State::Halting { then: Then::Wake },
            State::Halting { then: Then::Crashed { crashes: 1 } },
            State::Halting { then: Then::Failed },
            State::Halting { then: Then::Stopped },
            State::Idle,
            State::Backoff { until, again: Again::Start { crashes: 1 } },
            State::CrashLoop { until, again: Again::Start { crashes: 5 } },
            State::Stopped,
            State::Failed,
        ]
    }

    fn at(state: State, proven: bool) -> Machine {
        Machine { state, proven, restarts: 0, seed: 7 }
    }

    /// Written out, so that a new event or state must be thought about.
    #[test]
    fn every_ignored_pair_is_meant() {
        let now = Instant::now();
        let due = now + Duration::from_secs(10);
        let mut ignored = String::new();
        for state in states(now) {
            let name = format!("{state:?}");
            let name =
                if name.starts_with("Halting") { name.as_str() } else { name.split(' ').next().unwrap() };
            let skipped: Vec<String> = events()
                .into_iter()
                .filter(|event| {
                    let mut machine = at(state, true);
                    machine.step(*event, due).is_none() && machine.state == state
                })
                .map(|event| format!("{event:?}"))
                .collect();
            ignored.push_str(&format!("{name}: {}\n", skipped.join(" ")));
        }
        let pings = "PingAnswered PingMissed { busy: false } PingMissed { busy: true }";
        let watching = format!("Lost Unused Called {pings} Deadline");
        let jobs = "Prepared PrepareFailed Started StartFailed PreparedGone";
        let expected = [
            format!("Preparing: Started StartFailed PreparedGone {watching} Gone Freed"),
            format!("Starting: Prepared PrepareFailed {watching} Gone Freed"),
            format!("Ready: {jobs} Called Deadline Gone Freed"),
            format!("Halting {{ then: Idle }}: Lost Unused {pings} Deadline Freed"),
            format!("Halting {{ then: Wake }}: {watching} Freed"),
            format!("Halting {{ then: Crashed {{ crashes: 1 }} }}: {watching} Freed"),
            format!("Halting {{ then: Failed }}: {watching} Refused Freed"),
            format!("Halting {{ then: Stopped }}: {watching} Refused Freed Stop"),
            format!("Idle: {jobs} Lost Unused {pings} Deadline Gone Freed"),
            format!("Backoff: {jobs} Lost Unused Called {pings} Gone Freed"),
            format!("CrashLoop: {jobs} Lost Unused Called {pings} Gone Freed"),
            format!("Stopped: {jobs} {watching} Gone Refused Freed Stop"),
            format!("Failed: {jobs} {watching} Gone Refused"),
        ];
        assert_eq!(ignored.trim_end(), expected.join("\n"));
    }

    #[test]
    fn an_unproven_generation_fails_once_and_a_proven_one_is_tried_again() {
        let now = Instant::now();
        for (state, event) in [
            (State::Preparing { failures: 0, crashes: 0 }, Event::PrepareFailed),
            (State::Starting { crashes: 0 }, Event::StartFailed),
            (State::Starting { crashes: 0 }, Event::PreparedGone),
        ] {
            let mut machine = at(state, false);
            assert_eq!((machine.step(event, now), machine.state), (None, State::Failed));
            let mut machine = at(state, true);
            machine.step(event, now);
            assert!(machine.deadline().is_some_and(|until| until > now));
        }
    }

    #[test]
    fn what_may_not_run_here_fails_at_once_and_for_good_also_when_it_is_proven() {
        let now = Instant::now();
        for state in states(now) {
            let mut machine = at(state, true);
            let effect = machine.step(Event::Refused, now);
            if matches!(state, State::Ready { .. }) {
                assert_eq!(effect, Some(Effect::Halt));
            }
            if matches!(machine.state, State::Halting { then: Then::Failed }) {
                machine.step(Event::Gone, now);
            }
            let is_over = matches!(state, State::Stopped | State::Halting { then: Then::Stopped });
            assert!(is_over || machine.state == State::Failed, "{state:?} became {:?}", machine.state);
        }
    }

    #[test]
    fn the_fifth_crash_is_a_loop_and_five_stable_minutes_forgive() {
        let mut now = Instant::now();
        let mut machine = at(State::Starting { crashes: 0 }, false);
        let crash = |machine: &mut Machine, now| {
            machine.step(Event::Started, now);
            assert_eq!(machine.step(Event::Lost, now), Some(Effect::Kill));
            machine.step(Event::Gone, now);
        };
        for n in 1..CRASHES {
            crash(&mut machine, now);
            assert!(matches!(machine.state, State::Backoff { .. }), "crash {n}");
            now = machine.deadline().expect("a pause");
            assert_eq!(machine.step(Event::Deadline, now), Some(Effect::Start));
        }
        crash(&mut machine, now);
        assert_eq!(
            machine.state,
            State::CrashLoop { until: now + CRASH_LOOP_PAUSE, again: Again::Start { crashes: 5 } }
        );
        now += CRASH_LOOP_PAUSE;
        machine.step(Event::Deadline, now);
        assert_eq!(machine.restarts, 5);
        machine.step(Event::Started, now);
        now += STABLE;
        machine.step(Event::Lost, now);
        assert_eq!(machine.state, State::Halting { then: Then::Crashed { crashes: 1 } });
    }

    #[test]
    fn what_is_gone_is_prepared_again_and_if_that_does_not_help_it_is_a_loop() {
        let mut now = Instant::now();
        let mut machine = at(State::Starting { crashes: 0 }, true);
        for n in 1..CRASHES + 2 {
            assert_eq!(machine.step(Event::PreparedGone, now), None);
            assert_eq!(matches!(machine.state, State::CrashLoop { .. }), n >= CRASHES, "start {n}");
            now = machine.deadline().expect("a pause");
            assert_eq!(machine.step(Event::Deadline, now), Some(Effect::Prepare));
            // A preparation that fails on the way neither forgets nor adds a crash.
            machine.step(Event::PrepareFailed, now);
            now = machine.deadline().expect("a pause");
            assert_eq!(machine.step(Event::Deadline, now), Some(Effect::Prepare));
            assert_eq!(machine.step(Event::Prepared, now), Some(Effect::Start));
            assert_eq!(machine.state, State::Starting { crashes: n });
        }
        machine.step(Event::Started, now);
        assert!(matches!(machine.state, State::Ready { .. }));
    }

    #[test]
    fn three_missed_pings_are_one_too_many_unless_it_works() {
        let now = Instant::now();
        let mut machine = at(State::Ready { since: now, crashes: 0, strikes: 0 }, true);
        for _ in 0..5 {
            assert_eq!(machine.step(Event::PingMissed { busy: true }, now), None);
        }
        machine.step(Event::PingAnswered, now);
        assert_eq!(machine.step(Event::PingMissed { busy: false }, now), None);
        assert_eq!(machine.step(Event::PingMissed { busy: false }, now), None);
        assert_eq!(machine.step(Event::PingMissed { busy: false }, now), Some(Effect::Kill));
    }

    #[test]
    fn a_call_wakes_an_idle_service_also_while_it_is_falling_asleep() {
        let now = Instant::now();
        let mut machine = at(State::Ready { since: now, crashes: 2, strikes: 0 }, true);
        assert_eq!(machine.step(Event::Unused, now), Some(Effect::Halt));
        assert_eq!(machine.step(Event::Called, now), None);
        assert_eq!(machine.step(Event::Gone, now), Some(Effect::Start));
        assert_eq!(machine.restarts, 0, "waking is no restart");
    }

    proptest! {
        /// The world answers effects as the task does; the machine must never ask for the impossible.
        #[test]
        fn no_order_of_events_breaks_the_invariants(
            proven: bool,
            seed: u64,
            script in proptest::collection::vec((0..16usize, 0..400u64), 1..200),
        ) {
            let mut now = Instant::now();
            let (mut machine, first) = Machine::new(proven, seed);
            prop_assert_eq!(first, Effect::Prepare);
            let (mut job, mut process) = (true, false);
            let (mut stopped, mut was_ready, mut refused) = (false, proven, false);
            for (choice, seconds) in script {
                now += Duration::from_secs(seconds);
                let event = events()[choice];
                // What can not happen is not said: no outcome without a job, no loss without a process.
                let possible = match event {
                    Event::Prepared | Event::PrepareFailed => {
                        job && matches!(machine.state, State::Preparing { .. } | State::Halting { .. }) && !process
                    }
                    Event::Started | Event::StartFailed | Event::PreparedGone => {
                        job && matches!(machine.state, State::Starting { .. } | State::Halting { .. }) && !process
                    }
                    Event::Gone => process && matches!(machine.state, State::Halting { .. }),
                    Event::Freed => refused,
                    Event::Refused => !job || !matches!(machine.state, State::Halting { .. }),
                    _ => true,
                };
                if !possible { continue }
                match event {
                    Event::Prepared | Event::PrepareFailed | Event::StartFailed | Event::PreparedGone => {
                        job = false;
                    }
                    Event::Started => { job = false; process = true; was_ready = true; }
                    Event::Gone => process = false,
                    Event::Stop => stopped = true,
                    Event::Refused => { job = false; refused = true; }
                    _ => {}
                }
                match machine.step(event, now) {
                    Some(Effect::Prepare | Effect::Start) => {
                        prop_assert!(!job && !process, "one at a time");
                        prop_assert!(!stopped, "nothing starts after Stop");
                        job = true;
                    }
                    Some(Effect::Abandon) => prop_assert!(job),
                    Some(Effect::Halt | Effect::Kill) => prop_assert!(process),
                    None => {}
                }
                if machine.state == State::Failed { prop_assert!(!was_ready || refused) }
                if matches!(machine.state, State::Idle | State::Failed | State::Stopped) {
                    prop_assert!(!process && !job, "at rest, nothing is left");
                }
                if let Some(until) = machine.deadline() {
                    prop_assert!(until <= now + CRASH_LOOP_PAUSE);
                }
            }
            machine.step(Event::Stop, now);
            if process { machine.step(Event::Gone, now); } else if job { machine.step(Event::StartFailed, now); }
            prop_assert_eq!(machine.state, State::Stopped);
        }
    }
}
