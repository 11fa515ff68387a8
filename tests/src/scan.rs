//! Looks for marked secrets, in every form that a program may write them in: in files, records, and the arguments and
//! environments of processes.
//!
//! It shares no code with the masking of the product.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// What is looked for. Cheap to clone.
#[derive(Clone)]
pub struct Marks(Arc<Needles>);

struct Needles {
    finder: AhoCorasick,
    /// Beside the needles, in their order: name of the secret and its form.
    names: Vec<(String, &'static str)>,
}

/// One find.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    pub mark: String,
    pub form: &'static str,
    pub at: usize,
}

impl Marks {
    /// Names and values.
    pub fn new(secrets: &[(&str, &[u8])]) -> Self {
        let (mut names, mut needles) = (Vec::new(), Vec::new());
        for (name, value) in secrets {
            for (form, needle) in forms(value) {
                names.push(((*name).to_owned(), form));
                needles.push(needle);
            }
        }
        Self(Arc::new(Needles { finder: AhoCorasick::new(needles).unwrap(), names }))
    }

    pub fn find(&self, bytes: &[u8]) -> Vec<Hit> {
        let hits = self.0.finder.find_overlapping_iter(bytes);
        let hit = |found: aho_corasick::Match| {
            let (mark, form) = self.0.names[found.pattern().as_usize()].clone();
            Hit { mark, form, at: found.start() }
        };
        hits.map(hit).collect()
    }

    /// Files below a folder that hold a mark, with what they hold; links are not followed.
    pub fn in_files(&self, folder: &Path) -> BTreeMap<String, Vec<Hit>> {
        let mut found = BTreeMap::new();
        self.look_into(folder, &mut found);
        found
    }

    fn look_into(&self, folder: &Path, found: &mut BTreeMap<String, Vec<Hit>>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                self.look_into(&path, found);
                continue;
            }
            let named = self.find(path.as_os_str().as_encoded_bytes());
            let read = if kind.is_file() { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
            let hits = [named, self.find(&read)].concat();
            if !hits.is_empty() {
                found.insert(path.display().to_string(), hits);
            }
        }
    }
}

/// Raw, percent-encoded, JSON, hex, base64 wherever in a longer text it begins.
fn forms(value: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let percent = |upper: bool| {
        value.iter().fold(String::new(), |mut text, byte| {
            let is_plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
            let _ = match (is_plain, upper) {
                (true, _) => write!(text, "{}", char::from(*byte)),
                (false, true) => write!(text, "%{byte:02X}"),
                (false, false) => write!(text, "%{byte:02x}"),
            };
            text
        })
    };
    let mut found = vec![
        ("raw", value.to_vec()),
        ("url", percent(true).into_bytes()),
        ("url, small", percent(false).into_bytes()),
        ("hex", hex::encode(value).into_bytes()),
        ("hex, large", hex::encode_upper(value).into_bytes()),
    ];
    if let Ok(text) = std::str::from_utf8(value) {
        let json = serde_json::to_string(text).unwrap();
        let ascii = json.chars().fold(String::new(), |mut ascii, c| {
            if c.is_ascii() {
                ascii.push(c);
            } else {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| write!(ascii, "\\u{unit:04x}").unwrap());
            }
            ascii
        });
        for (form, json) in [("json", json), ("json, ascii", ascii)] {
            found.push((form, json.as_bytes()[1..json.len() - 1].to_vec()));
        }
    }
    for shift in 0..3 {
        let shifted = [vec![0; shift], value.to_vec()].concat();
        // Only the digits that no neighbour has a say in.
        let digits = (shift * 8).div_ceil(6)..shifted.len() * 8 / 6;
        found.push(("base64", STANDARD.encode(&shifted).as_bytes()[digits.clone()].to_vec()));
        found.push(("base64url", URL_SAFE.encode(&shifted).as_bytes()[digits].to_vec()));
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found.dedup_by(|a, b| a.1 == b.1);
    found
}

/// A process that had a mark where everybody of its user can read it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// `cmdline` or `environ`.
    pub place: &'static str,
    pub mark: String,
    pub command: String,
}

/// Looks at every process of the machine, again and again, until it is told to stop.
pub struct Watch {
    is_over: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    seen: Arc<Mutex<BTreeMap<Seen, u64>>>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub fn begin(marks: Marks) -> Self {
        let (is_over, rounds, seen) =
            <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<Mutex<BTreeMap<Seen, u64>>>)>::default();
        let (over, counted, noted) = (Arc::clone(&is_over), Arc::clone(&rounds), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for found in look_at_processes(&marks) {
                    *noted.lock().unwrap().entry(found).or_default() += 1;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                // It must not starve what it looks at.
                std::thread::park_timeout(Duration::from_millis(3));
            }
        });
        Self { is_over, rounds, seen, thread }
    }

    pub fn seen(&self) -> BTreeMap<Seen, u64> {
        self.seen.lock().unwrap().clone()
    }

    /// How often it has looked, and what it saw how often.
    pub fn end(self) -> (u64, BTreeMap<Seen, u64>) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        (self.rounds.load(Ordering::Relaxed), std::mem::take(&mut self.seen.lock().unwrap()))
    }
}

fn look_at_processes(marks: &Marks) -> Vec<Seen> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        for place in ["cmdline", "environ"] {
            let read = std::fs::read(entry.path().join(place)).unwrap_or_default();
            for hit in marks.find(&read) {
                let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                found.push(Seen { place, mark: hit.mark, command });
            }
        }
    }
    found
}
