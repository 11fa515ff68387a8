//! A message that is larger than the limit: skipped, but whose answer it was is found.
//!
//! Here: both ends of it. Not here: what its caller is told.

/// Kept of both ends.
const GIANT_HEAD: usize = 4096;
const GIANT_TAIL: usize = 512;

pub struct Giant {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Giant {
    /// What was read of it so far.
    pub fn of(bytes: &[u8]) -> Self {
        Self { head: head_of(bytes), tail: tail_of(bytes) }
    }

    /// More of it, which is not kept.
    pub fn take(&mut self, more: &[u8]) {
        self.tail.extend_from_slice(&more[more.len().saturating_sub(GIANT_TAIL)..]);
        let surplus = self.tail.len().saturating_sub(GIANT_TAIL);
        self.tail.drain(..surplus);
    }

    /// The number of our id in a member `"id"` near either end. The tail is searched backwards: an id quoted
    /// inside the result comes before the real one.
    pub fn find_id(&self, prefix: &str) -> Option<u64> {
        let number = |after: &[u8]| -> Option<u64> {
            let digits = after.iter().take_while(|b| b.is_ascii_digit()).count();
            std::str::from_utf8(&after[..digits]).ok()?.parse().ok()
        };
        [format!("\"id\":\"{prefix}"), format!("\"id\": \"{prefix}")].iter().find_map(|mark| {
            let mark = mark.as_bytes();
            let last = memchr::memmem::rfind(&self.tail, mark).map(|at| &self.tail[at + mark.len()..]);
            let first = || memchr::memmem::find(&self.head, mark).map(|at| &self.head[at + mark.len()..]);
            number(last.or_else(first)?)
        })
    }
}

fn head_of(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len().min(GIANT_HEAD)].to_vec()
}

fn tail_of(bytes: &[u8]) -> Vec<u8> {
    bytes[bytes.len().saturating_sub(GIANT_TAIL)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_found_at_either_end_and_the_last_one_counts() {
        let filler = "x".repeat(5000);
        let last = format!(r#"{{"result":{{"id":"p-1","t":"{filler}"}},"jsonrpc":"2.0","id":"p-2"}}"#);
        assert_eq!(Giant::of(last.as_bytes()).find_id("p-"), Some(2));
        let first = format!(r#"{{"jsonrpc": "2.0", "id": "p-3", "result":"{filler}"}}"#);
        assert_eq!(Giant::of(first.as_bytes()).find_id("p-"), Some(3));
        let (head, rest) = last.as_bytes().split_at(100);
        let mut parts = Giant::of(head);
        rest.chunks(7).for_each(|chunk| parts.take(chunk));
        assert_eq!(parts.find_id("p-"), Some(2));
        assert_eq!(Giant::of(filler.as_bytes()).find_id("p-"), None);
    }
}
