//! The runner's own book of openings.
//!
//! Here: a file of JSON lines that only grows, each on disk before what it tells of happens; what a broker has fetched may
//! go. Not here: the broker's copy, which people read.
//! Invariant: [`Book::write`] returns only after the lines are on disk. Numbers grow by one and are never used twice.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use wire::vault::Opening;

use super::file;

/// Openings that no broker has fetched. More are refused: one that was not booked did not happen.
const MOST: usize = 50_000;
/// Fetched lines are cut off once there are this many.
const CUT: usize = 2_000;
/// Openings of one answer.
const PAGE: usize = 1_000;

pub struct Book {
    /// Random, of this file.
    pub id: String,
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
    /// Oldest first. The last one stays after it was fetched: it holds the number.
    lines: Vec<Opening>,
    fetched: i64,
    most: usize,
    /// It is not sure that `file` is still the one at `path`.
    is_lost: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum BookError {
    #[error("no broker has fetched the last {0} openings")]
    Full(usize),
    #[error("an opening could not be written down: {0}")]
    Write(#[from] io::Error),
}

impl Book {
    pub fn open(directory: &Path) -> io::Result<Self> {
        let id = identity(&directory.join("ledger.id"))?;
        let path = directory.join("ledger");
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        let (lines, length) = read(&mut file)?;
        // A line that a kill cut was of an opening that did not happen.
        file.set_len(length)?;
        file.sync_all()?;
        file::sync_directory(&path)?;
        Ok(Self { id, path, file, length, lines, fetched: 0, most: MOST, is_lost: false })
    }

    /// The number of the newest; 0 when there is none.
    pub fn last(&self) -> i64 {
        self.lines.last().map_or(0, |line| line.seq)
    }

    /// Numbers these openings and puts them on disk, all or none.
    pub fn write(&mut self, openings: impl IntoIterator<Item = Opening>) -> Result<(), BookError> {
        if self.is_lost {
            let directory = self.path.parent().unwrap_or(Path::new("/"));
            *self = Self { fetched: self.fetched, most: self.most, ..Self::open(directory)? };
        }
        let mut next = self.last();
        let numbered: Vec<Opening> = openings
            .into_iter()
            .map(|opening| {
                next += 1;
                Opening { seq: next, ..opening }
            })
            .collect();
        let waiting = self.lines.iter().filter(|line| line.seq > self.fetched).count();
        if waiting + numbered.len() > self.most {
            return Err(BookError::Full(waiting));
        }
        let mut bytes = Vec::new();
        for opening in &numbered {
            serde_json::to_writer(&mut bytes, opening).map_err(io::Error::from)?;
            bytes.push(b'\n');
        }
        // What a write that failed before left of its lines.
        self.file.set_len(self.length)?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.length += bytes.len() as u64;
        self.lines.extend(numbered);
        Ok(())
    }

    /// What comes after `after`. Who asks has everything up to there.
    pub fn page(&mut self, after: i64) -> Vec<Opening> {
        self.fetched = self.fetched.max(after.min(self.last()));
        if let Err(e) = self.cut() {
            // What is written into a file that was replaced is gone with the next start.
            self.is_lost = true;
            tracing::warn!("the ledger of openings could not be shortened: {e}");
        }
        self.lines.iter().filter(|line| line.seq > after).take(PAGE).cloned().collect()
    }

    fn cut(&mut self) -> io::Result<()> {
        let fetched = self.lines.iter().take_while(|line| line.seq <= self.fetched).count();
        let go = fetched.min(self.lines.len().saturating_sub(1));
        if go < CUT {
            return Ok(());
        }
        let mut bytes = Vec::new();
        for line in &self.lines[go..] {
            serde_json::to_writer(&mut bytes, line)?;
            bytes.push(b'\n');
        }
        file::replace(&self.path, &bytes)?;
        self.lines.drain(..go);
        self.length = bytes.len() as u64;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        Ok(())
    }
}

fn identity(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(id) if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(id),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0u8; 16];
            getrandom::fill(&mut bytes).map_err(io::Error::other)?;
            let id = hex::encode(bytes);
            file::replace(path, id.as_bytes())?;
            Ok(id)
        }
        Err(e) => Err(e),
    }
}

/// The whole lines, and how many bytes they are.
fn read(file: &mut File) -> io::Result<(Vec<Opening>, u64)> {
    let mut text = Vec::new();
    io::Read::read_to_end(file, &mut text)?;
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let lines: Result<Vec<Opening>, _> = text[..whole]
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(serde_json::from_slice)
        .collect();
    Ok((lines.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?, whole as u64))
}

#[cfg(test)]
mod tests {
    use wire::vault::{RunnerId, VaultName};
    use wire::{MeshId, PublicKey, ServiceName};

    use super::*;

    fn opening() -> Opening {
        Opening {
            seq: 0,
            at_ms: 1,
            runner: RunnerId::parse(&"0".repeat(32)).unwrap(),
            mesh: MeshId::parse(&"m".repeat(32)).unwrap(),
            owner: PublicKey::parse(&"ab".repeat(32)).unwrap(),
            key: VaultName::parse("token").unwrap(),
            version: 1,
            service: ServiceName::parse("echo").unwrap(),
            generation: 1,
            caller: None,
            reason: "start".to_owned(),
        }
    }

    fn numbers(book: &mut Book, after: i64) -> Vec<i64> {
        book.page(after).iter().map(|line| line.seq).collect()
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_its_number_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        book.write([opening(), opening()]).unwrap();
        let id = book.id.clone();
        let path = dir.path().join("ledger");
        let whole = std::fs::read(&path).unwrap();
        for cut in [1, 40, whole.len() / 2] {
            let torn = [whole.as_slice(), &whole[..cut.min(whole.len() / 2 - 1)]].concat();
            std::fs::write(&path, torn).unwrap();
            let mut book = Book::open(dir.path()).unwrap();
            assert_eq!((numbers(&mut book, 0), &book.id), (vec![1, 2], &id));
            book.write([opening()]).unwrap();
            assert_eq!(numbers(&mut Book::open(dir.path()).unwrap(), 2), [3]);
        }
        std::fs::write(&path, b"{}\n").unwrap();
        assert!(Book::open(dir.path()).is_err(), "a line that is none is no end");
    }

    #[test]
    fn what_was_fetched_may_go_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        let n = i64::try_from(CUT).unwrap() + 1;
        book.write((0..n).map(|_| opening())).unwrap();
        assert_eq!(book.page(0).len(), PAGE);
        assert_eq!(book.page(0).len(), PAGE, "asking again loses nothing");
        assert_eq!(numbers(&mut book, n), Vec::<i64>::new());
        assert_eq!(std::fs::read_to_string(dir.path().join("ledger")).unwrap().lines().count(), 1);
        book.write([opening()]).unwrap();
        assert_eq!(numbers(&mut book, n), [n + 1]);
        let mut again = Book::open(dir.path()).unwrap();
        assert_eq!((again.last(), numbers(&mut again, n)), (n + 1, vec![n + 1]));
        // A number that was never given acknowledges nothing that comes later.
        assert!(numbers(&mut again, i64::MAX).is_empty());
        again.write([opening()]).unwrap();
        assert_eq!(numbers(&mut again, n + 1), [n + 2]);
    }

    #[test]
    fn after_a_cut_that_failed_half_way_no_line_goes_into_a_file_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        let n = i64::try_from(CUT).unwrap() + 1;
        book.write((0..n).map(|_| opening())).unwrap();
        let path = dir.path().join("ledger");
        // As when the new file is in its place and can't be opened: the old one is open still.
        let last = serde_json::to_string(book.lines.last().unwrap()).unwrap() + "\n";
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, last).unwrap();
        std::fs::create_dir(dir.path().join("ledger~")).unwrap();
        assert!(numbers(&mut book, n).is_empty());
        book.write([opening()]).unwrap();
        assert_eq!(numbers(&mut Book::open(dir.path()).unwrap(), 0), [n, n + 1]);
        assert_eq!(numbers(&mut book, n), [n + 1]);
    }

    #[test]
    fn a_book_that_nobody_fetches_takes_no_more_at_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book { most: 2, ..Book::open(dir.path()).unwrap() };
        book.write([opening(), opening()]).unwrap();
        assert!(matches!(book.write([opening()]), Err(BookError::Full(2))));
        book.page(1);
        book.write([opening()]).unwrap();
        assert_eq!(book.last(), 3);
    }

    #[test]
    fn an_opening_that_can_not_be_written_is_not_in_the_book() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        book.write([opening()]).unwrap();
        // As a full disk: each write of it fails.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut book.file, full);
        assert!(matches!(book.write([opening()]), Err(BookError::Write(_))));
        book.file = file;
        assert_eq!(book.last(), 1);
        book.write([opening()]).unwrap();
        assert_eq!(numbers(&mut Book::open(dir.path()).unwrap(), 0), [1, 2]);
    }
}
