//! The processes that reach the broker through this one: what each is owed.
//!
//! Invariant: a process that is too slow or that dies costs nobody else anything, and what it left running is cancelled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use wire::peer::hello::HelloAck;

use super::words::{Note, Word};
use crate::connection::CONNECTING;
use crate::connection::frame::Frame;
use crate::connection::inbox::{Command, Nature, cancel_frame};

/// Words that may wait for one process.
const WORD_QUEUE: usize = 4096;
const MAX_JOINERS: usize = 256;

pub(in crate::connection) struct Joiners {
    /// What the holder's own ids start with.
    own: Arc<str>,
    table: Mutex<Table>,
    /// Requests that end by themselves.
    running: watch::Sender<usize>,
}

struct Table {
    /// Counts the times that the link was up.
    epoch: u32,
    state: Word,
    is_leaving: bool,
    all: HashMap<String, Joiner>,
}

struct Joiner {
    /// `None`: it is being turned out.
    words: Option<mpsc::Sender<Word>>,
    asked: HashMap<String, Asked>,
}

struct Asked {
    is_once: bool,
    nature: Nature,
}

impl Joiner {
    fn say(&mut self, word: Word) {
        if self.words.as_ref().is_some_and(|words| words.try_send(word).is_err()) {
            tracing::debug!("a process of this session reads too slowly");
            self.words = None;
        }
    }
}

impl Table {
    fn is_up(&self) -> bool {
        matches!(self.state, Word::Up { .. })
    }

    fn say_to_all(&mut self, word: &Word) {
        self.all.values_mut().for_each(|joiner| joiner.say(word.clone()));
    }

    fn set(&mut self, state: Word) {
        self.say_to_all(&state);
        self.state = state;
    }

    fn running(&self) -> usize {
        let ends = |joiner: &Joiner| joiner.asked.values().filter(|a| a.nature != Nature::Standing).count();
        self.all.values().map(ends).sum()
    }
}

impl Joiners {
    pub(super) fn new(own: Arc<str>) -> Self {
        let state = Word::Down(CONNECTING.into());
        let table = Table { epoch: 0, state, is_leaving: false, all: HashMap::new() };
        Self { own, table: Mutex::new(table), running: watch::Sender::new(0) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, table: &Table) {
        // Only a link that is about to end asks.
        if table.is_leaving {
            self.running.send_replace(table.running());
        }
    }

    pub(in crate::connection) fn is_current(&self, epoch: u32) -> bool {
        let table = self.table();
        table.is_up() && table.epoch == epoch
    }

    pub(in crate::connection) fn up(&self, ack: &HelloAck) {
        let Ok(ack) = serde_json::to_string(ack) else { return };
        let mut table = self.table();
        table.epoch += 1;
        let epoch = table.epoch;
        table.set(Word::Up { epoch, ack: ack.into() });
    }

    pub(in crate::connection) fn down(&self, why: &str) {
        let mut table = self.table();
        // Each process answers its own waiters when it hears this.
        table.all.values_mut().for_each(|joiner| joiner.asked.clear());
        table.set(Word::Down(why.into()));
        self.count(&table);
    }

    pub(in crate::connection) fn ended(&self, why: &str) {
        self.table().set(Word::Ended(why.into()));
    }

    /// Takes nobody in from now on, and lets those who are here keep back what they have not asked yet.
    pub(in crate::connection) fn leave(&self) {
        let mut table = self.table();
        table.is_leaving = true;
        table.say_to_all(&Word::Leaving);
        self.count(&table);
    }

    /// Nothing that ends by itself is under way. To be asked after [`Self::leave`].
    pub(in crate::connection) async fn quiet(&self) {
        // The sender lives in `self`.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// No more words: who is here writes out what waits, and goes.
    pub(super) fn release(&self) {
        let mut table = self.table();
        table.is_leaving = true;
        table.all.values_mut().for_each(|joiner| joiner.words = None);
    }

    /// `None`: not now.
    pub(super) fn enter(&self, prefix: &str) -> Option<mpsc::Receiver<Word>> {
        if prefix == &*self.own {
            return None;
        }
        let mut table = self.table();
        if table.is_leaving || table.all.len() >= MAX_JOINERS || table.all.contains_key(prefix) {
            return None;
        }
        let (words, receiver) = mpsc::channel(WORD_QUEUE);
        let mut joiner = Joiner { words: Some(words), asked: HashMap::new() };
        joiner.say(table.state.clone());
        table.all.insert(prefix.to_owned(), joiner);
        Some(receiver)
    }

    /// What to pass on for a note.
    pub(super) fn note(&self, prefix: &str, note: Note) -> Option<Command> {
        let mut table = self.table();
        let current = table.is_up().then_some(table.epoch);
        let joiner = table.all.get_mut(prefix)?;
        let command = match note {
            Note::Ask { epoch, is_once, nature, id, text } => {
                // It can't ask in another's name.
                if current != Some(epoch) || id.split_once('.').is_none_or(|(before, _)| before != prefix) {
                    return None;
                }
                joiner.asked.insert(id, Asked { is_once, nature });
                Some(Command::Pass { epoch, text })
            }
            Note::Tell { epoch, text } => (current == Some(epoch)).then_some(Command::Pass { epoch, text }),
            Note::Forget { id } => {
                joiner.asked.remove(&id);
                None
            }
        };
        self.count(&table);
        command
    }

    /// The process has gone: what to send for it.
    pub(super) fn gone(&self, prefix: &str) -> Vec<Command> {
        let mut table = self.table();
        let Some(joiner) = table.all.remove(prefix) else { return Vec::new() };
        self.count(&table);
        let epoch = table.epoch;
        let cancelled = joiner.asked.iter().filter(|(_, asked)| asked.nature != Nature::Errand);
        cancelled.filter_map(|(id, _)| Some(Command::Pass { epoch, text: cancel_frame(id)? })).collect()
    }

    pub(in crate::connection) fn publish(&self, frame: &Frame) {
        self.table().say_to_all(&Word::Frame(frame.text()));
    }

    pub(in crate::connection) fn answer(&self, id: &str, frame: &Frame) {
        let Some((prefix, _)) = id.split_once('.') else { return };
        let mut table = self.table();
        let Some(joiner) = table.all.get_mut(prefix) else { return };
        let Some(asked) = joiner.asked.get(id) else { return };
        if asked.is_once {
            joiner.asked.remove(id);
        }
        joiner.say(Word::Frame(frame.text()));
        self.count(&table);
    }
}

/// Shared by the link and the tasks that serve a process each.
pub(super) type Everybody = Arc<Joiners>;

#[cfg(test)]
mod tests {
    use super::*;

    fn ack() -> HelloAck {
        serde_json::from_str(
            r#"{"presenceId":"P","memberDisplayName":"Ana","services":[],"memberRole":"owner","brokerVersion":"0"}"#,
        )
        .unwrap()
    }

    fn ask(epoch: u32, id: &str, nature: Nature) -> Note {
        Note::Ask { epoch, is_once: true, nature, id: id.to_owned(), text: "{}".to_owned() }
    }

    fn frame(text: &str) -> Frame {
        Frame::new(text.to_owned().into())
    }

    #[test]
    fn who_reads_too_slowly_loses_their_own_link_and_nobody_elses() {
        let joiners = Joiners::new("own".into());
        let mut slow = joiners.enter("slow").unwrap();
        let mut quick = joiners.enter("quick").unwrap();
        let mut heard = 0;
        for _ in 0..=WORD_QUEUE {
            joiners.publish(&frame("{}"));
            while quick.try_recv().is_ok() {
                heard += 1;
            }
        }
        // The state first, then every frame.
        assert_eq!(heard, WORD_QUEUE + 2);
        let mut left = 0;
        while slow.try_recv().is_ok() {
            left += 1;
        }
        assert_eq!(left, WORD_QUEUE);
        assert!(slow.is_closed() && !quick.is_closed());
    }

    #[test]
    fn what_was_meant_for_a_lost_link_is_not_sent_over_the_next() {
        let joiners = Joiners::new("own".into());
        let _words = joiners.enter("a").unwrap();
        joiners.up(&ack());
        let Some(Command::Pass { epoch, .. }) = joiners.note("a", ask(1, "a.1", Nature::Call)) else {
            panic!("it is passed on");
        };
        assert!(joiners.is_current(epoch));
        joiners.down("lost");
        assert!(!joiners.is_current(epoch));
        assert!(joiners.note("a", ask(1, "a.2", Nature::Call)).is_none());
        joiners.up(&ack());
        assert!(!joiners.is_current(epoch));
        assert!(joiners.note("a", Note::Tell { epoch: 1, text: "{}".into() }).is_none());
        assert!(joiners.note("a", ask(2, "a.3", Nature::Call)).is_some());
        // Of what was under way before, nothing is left to cancel.
        assert_eq!(joiners.gone("a").len(), 1);
    }

    #[test]
    fn nobody_asks_in_anothers_name_or_gets_anothers_answers() {
        let joiners = Joiners::new("own".into());
        let mut a = joiners.enter("a").unwrap();
        let mut b = joiners.enter("b").unwrap();
        assert!(joiners.enter("a").is_none(), "a name is given once");
        assert!(joiners.enter("own").is_none(), "its answers would go to the holder");
        joiners.up(&ack());
        assert!(joiners.note("a", ask(1, "b.1", Nature::Call)).is_none());
        assert!(joiners.note("a", ask(1, "a.1", Nature::Call)).is_some());
        for receiver in [&mut a, &mut b] {
            while receiver.try_recv().is_ok() {}
        }
        joiners.answer("a.1", &frame("{}"));
        joiners.answer("a.1", &frame("{}"));
        joiners.answer("b.1", &frame("{}"));
        assert!(matches!(a.try_recv(), Ok(Word::Frame(_))));
        assert!(a.try_recv().is_err() && b.try_recv().is_err());
    }

    #[test]
    fn a_link_that_leaves_waits_for_what_ends_and_not_for_what_stands() {
        let joiners = Joiners::new("own".into());
        let mut words = joiners.enter("a").unwrap();
        joiners.up(&ack());
        joiners.note("a", ask(1, "a.1", Nature::Call));
        joiners.note("a", ask(1, "a.2", Nature::Standing));
        joiners.leave();
        assert_eq!(*joiners.running.borrow(), 1);
        assert!(joiners.enter("b").is_none());
        joiners.answer("a.1", &frame("{}"));
        assert_eq!(*joiners.running.borrow(), 0);
        joiners.release();
        let last = std::iter::from_fn(|| words.try_recv().ok()).last();
        assert!(matches!(last, Some(Word::Frame(_))), "what was answered is still written out");
    }
}
