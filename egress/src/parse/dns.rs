//! One DNS question, and the three answers that there are (RFC 1035 §4).
//!
//! Here: reading a query, writing an address, nothing, or a refusal. Not here: which names are allowed; asking anybody else.
//! Invariant: an answer is as long as the question and one record at most, so nobody can be flooded with it.
//!
//! Whatever follows the question, EDNS options included (RFC 6891), is not read: the answer fits in 512 bytes anyway.

use std::net::Ipv4Addr;

/// Longest packet that is looked at; larger ones are cut by the socket, and then hold no whole question.
pub const MAX_QUERY: usize = 1232;
const HEADER: usize = 12;
const MAX_NAME: usize = 255;
/// Seconds that an answer may be kept.
const TTL: u32 = 60;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
const ANSWERS: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Fine = 0,
    Malformed = 1,
    NoSuchName = 3,
    NotImplemented = 4,
}

/// A query that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// In lowercase, without the final dot. `None`: not the name of a host.
    pub name: Option<String>,
    /// It asks for an IPv4 address; every other type has no records.
    pub wants_address: bool,
    head: [u8; 3],
    /// As it came: clients check that the case of the letters comes back.
    question: &'a [u8],
}

/// A packet that is no query.
#[derive(Debug, PartialEq, Eq)]
pub enum NotAQuery {
    /// To be answered with this.
    Answer([u8; HEADER]),
    /// Not to be answered: it could be an answer itself, and two servers would talk for ever.
    Silence,
}

/// Reads the question of a packet.
///
/// # Errors
/// [`NotAQuery`].
pub fn read(packet: &[u8]) -> Result<Query<'_>, NotAQuery> {
    let Some((header, rest)) = packet.split_first_chunk::<HEADER>() else { return Err(NotAQuery::Silence) };
    if header[2] & ANSWERS != 0 {
        return Err(NotAQuery::Silence);
    }
    let head = [header[0], header[1], header[2]];
    if header[2] & OPCODE != 0 {
        return Err(NotAQuery::Answer(header_of(head, Code::NotImplemented, 0, 0)));
    }
    let malformed = NotAQuery::Answer(header_of(head, Code::Malformed, 0, 0));
    // One question, no answers, no authorities.
    if header[4..10] != [0, 1, 0, 0, 0, 0] {
        return Err(malformed);
    }
    let Some((name, name_len)) = read_name(rest) else { return Err(malformed) };
    let Some((&[t0, t1, c0, c1], _)) = rest[name_len..].split_first_chunk::<4>() else {
        return Err(malformed);
    };
    let is_internet = u16::from_be_bytes([c0, c1]) == CLASS_IN;
    Ok(Query {
        name: name.filter(|name| is_internet && super::is_name(name)),
        wants_address: u16::from_be_bytes([t0, t1]) == TYPE_A,
        head,
        question: &rest[..name_len + 4],
    })
}

/// The name at the start, and its length in bytes. Pointers are refused: in a first name there is nothing to point at.
/// The inner `None`: well-formed, but no text.
fn read_name(bytes: &[u8]) -> Option<(Option<String>, usize)> {
    let mut name = Vec::new();
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if length > 63 || at + length >= MAX_NAME {
            return None;
        }
        let label = bytes.get(at..at + length)?;
        // A dot inside a label would read as two labels.
        if label.contains(&b'.') {
            name.push(0);
        }
        if !name.is_empty() {
            name.push(b'.');
        }
        name.extend(label.iter().map(u8::to_ascii_lowercase));
        at += length;
    }
    Some((String::from_utf8(name).ok(), at))
}

fn header_of(head: [u8; 3], code: Code, questions: u8, answers: u8) -> [u8; HEADER] {
    let flags = ANSWERS | (head[2] & (OPCODE | RECURSION_DESIRED));
    [head[0], head[1], flags, RECURSION_AVAILABLE | code as u8, 0, questions, 0, answers, 0, 0, 0, 0]
}

impl Query<'_> {
    /// The name is not to be used. Not `REFUSED`: then musl waits for another answer until its time is up, and glibc's
    /// clients are told of a failure that may pass, and ask again and again.
    pub fn no_such_name(&self) -> Vec<u8> {
        self.answer(Code::NoSuchName, 0)
    }

    /// The name is there, but has no records of this type.
    pub fn empty(&self) -> Vec<u8> {
        self.answer(Code::Fine, 0)
    }

    pub fn address(&self, address: Ipv4Addr) -> Vec<u8> {
        let mut answer = self.answer(Code::Fine, 1);
        // The name of the question, at byte 12.
        answer.extend([0xc0, 12]);
        answer.extend(TYPE_A.to_be_bytes());
        answer.extend(CLASS_IN.to_be_bytes());
        answer.extend(TTL.to_be_bytes());
        answer.extend(4u16.to_be_bytes());
        answer.extend(address.octets());
        answer
    }

    fn answer(&self, code: Code, answers: u8) -> Vec<u8> {
        let mut answer = Vec::with_capacity(HEADER + self.question.len() + 16);
        answer.extend(header_of(self.head, code, 1, answers));
        answer.extend(self.question);
        answer
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(labels: &[&[u8]], kind: u16, class: u16) -> Vec<u8> {
        let mut packet = vec![0xab, 0xcd, 0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            packet.push(label.len() as u8);
            packet.extend(*label);
        }
        packet.push(0);
        packet.extend(kind.to_be_bytes());
        packet.extend(class.to_be_bytes());
        packet
    }

    fn malformed() -> Result<Query<'static>, NotAQuery> {
        Err(NotAQuery::Answer([0xab, 0xcd, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]))
    }

    #[test]
    fn an_address_is_answered_with_the_question_as_it_was_asked() {
        let asked = packet(&[b"aPi", b"GitHub", b"com"], 1, 1);
        let query = read(&asked).expect("a query");
        assert_eq!(query.name.as_deref(), Some("api.github.com"));
        assert!(query.wants_address);
        let answer = query.address(Ipv4Addr::new(11, 198, 0, 7));
        assert_eq!(answer[..12], [0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[12..asked.len()], asked[12..]);
        assert_eq!(answer[asked.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 11, 198, 0, 7]);
    }

    #[test]
    fn other_types_have_no_records_and_refusals_say_so() {
        let asked = packet(&[b"a", b"com"], 28, 1);
        let query = read(&asked).expect("a query");
        assert!(!query.wants_address);
        assert_eq!(query.empty()[2..8], [0x81, 0x80, 0, 1, 0, 0]);
        assert_eq!(query.no_such_name()[2..8], [0x81, 0x83, 0, 1, 0, 0]);
    }

    #[test]
    fn options_behind_the_question_are_tolerated() {
        let mut asked = packet(&[b"a", b"com"], 1, 1);
        asked[11] = 1;
        asked.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read(&asked).expect("a query").name.as_deref(), Some("a.com"));
    }

    #[test]
    fn a_name_that_is_none_of_a_host_is_not_one() {
        let odd: [&[&[u8]]; 7] = [
            &[],
            &[b"a b", b"com"],
            &[b"a.b", b"com"],
            &[b"\xff"],
            &[b"a\0", b"com"],
            &[b"1", b"2"],
            &[b"-a"],
        ];
        for labels in odd {
            let asked = packet(labels, 1, 1);
            assert_eq!(read(&asked).expect("well-formed").name, None, "{labels:?}");
        }
        assert_eq!(read(&packet(&[b"a", b"com"], 1, 3)).expect("well-formed").name, None, "chaos class");
    }

    #[test]
    fn what_is_malformed_is_said_to_be() {
        let whole = packet(&[b"a", b"com"], 1, 1);
        for length in 12..whole.len() {
            assert_eq!(read(&whole[..length]), malformed(), "{length} bytes");
        }
        let mut pointer = whole.clone();
        pointer.splice(12.., [0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(read(&pointer), malformed());
        assert_eq!(read(&packet(&[&[b'a'; 64]], 1, 1)), malformed());
        assert_eq!(read(&packet(&[&[b'a'; 60][..]; 5], 1, 1)), malformed());
        for (at, count) in [(5, 0), (5, 2), (4, 1), (7, 1), (9, 1)] {
            let mut counts = whole.clone();
            counts[at] = count;
            assert_eq!(read(&counts), malformed(), "byte {at}");
        }
    }

    #[test]
    fn answers_and_scraps_are_met_with_silence() {
        let mut answer = packet(&[b"a", b"com"], 1, 1);
        answer[2] |= 0x80;
        assert_eq!(read(&answer), Err(NotAQuery::Silence));
        assert_eq!(read(&answer[..11]), Err(NotAQuery::Silence));
        let mut update = packet(&[b"a", b"com"], 1, 1);
        update[2] = 5 << 3;
        assert!(matches!(read(&update), Err(NotAQuery::Answer(head)) if head[3] & 15 == 4));
    }

    proptest! {
        #[test]
        fn no_packet_panics_and_no_answer_outgrows_its_question(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(query) = read(&packet) {
                prop_assert!(query.address(Ipv4Addr::LOCALHOST).len() <= packet.len() + 16);
                prop_assert!(query.name.is_none_or(|name| super::super::is_name(&name)));
            }
        }

        #[test]
        fn a_damaged_query_never_panics(at in 0usize..30, byte in any::<u8>(), cut in 0usize..40) {
            let mut packet = packet(&[b"packages", b"example", b"org"], 1, 1);
            let at = at % packet.len();
            packet[at] = byte;
            packet.truncate(cut);
            let _ = read(&packet);
        }
    }
}
