//! Which fake address means which name, inside one jail.
//!
//! Here: giving out addresses, and reading them back. Not here: which names get one.
//! Invariant: a name keeps its address until 4096 others were used after it; an address that was given up comes back last.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

/// Names of one jail at once.
pub(crate) const MAX_NAMES: usize = 4096;

/// Where the fake addresses lie: all of them are local inside the jail, and nowhere else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) first: Ipv4Addr,
    pub(crate) count: u32,
}

/// 11.198.0.1 to 11.199.255.254.
pub(crate) const FAKES: Range = Range { first: Ipv4Addr::new(11, 198, 0, 1), count: (1 << 17) - 2 };

#[derive(Debug)]
pub(crate) struct Names {
    range: Range,
    /// Offset of the address that is given out next.
    next: u32,
    by_name: HashMap<String, u32>,
    by_offset: HashMap<u32, Named>,
    /// By the time of last use.
    used: BTreeMap<u64, u32>,
    clock: u64,
}

#[derive(Debug)]
struct Named {
    name: String,
    used: u64,
}

impl Names {
    pub(crate) fn new(range: Range) -> Self {
        Self {
            range,
            next: 0,
            by_name: HashMap::new(),
            by_offset: HashMap::new(),
            used: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The address that means this name from now on.
    pub(crate) fn address_of(&mut self, name: &str) -> Ipv4Addr {
        let offset = match self.by_name.get(name) {
            Some(offset) => *offset,
            None => self.add(name),
        };
        self.touch(offset);
        self.address_at(offset)
    }

    pub(crate) fn name_of(&mut self, address: Ipv4Addr) -> Option<String> {
        let offset = address.to_bits().checked_sub(self.range.first.to_bits())?;
        let name = self.by_offset.get(&offset)?.name.clone();
        self.touch(offset);
        Some(name)
    }

    fn address_at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.range.first.to_bits() + offset)
    }

    fn add(&mut self, name: &str) -> u32 {
        if self.by_offset.len() >= MAX_NAMES.min(self.range.count as usize)
            && let Some((_, oldest)) = self.used.pop_first()
            && let Some(named) = self.by_offset.remove(&oldest)
        {
            self.by_name.remove(&named.name);
        }
        // There are fewer names than addresses, so one of them is free.
        while self.by_offset.contains_key(&self.next) {
            self.next = (self.next + 1) % self.range.count;
        }
        let offset = self.next;
        self.next = (self.next + 1) % self.range.count;
        self.by_name.insert(name.to_owned(), offset);
        self.by_offset.insert(offset, Named { name: name.to_owned(), used: 0 });
        offset
    }

    fn touch(&mut self, offset: u32) {
        let Some(named) = self.by_offset.get_mut(&offset) else { return };
        self.clock += 1;
        self.used.remove(&named.used);
        named.used = self.clock;
        self.used.insert(self.clock, offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_means_its_name_and_stays() {
        let mut names = Names::new(FAKES);
        let a = names.address_of("a.com");
        let b = names.address_of("b.com");
        assert_eq!((a, b), (Ipv4Addr::new(11, 198, 0, 1), Ipv4Addr::new(11, 198, 0, 2)));
        assert_eq!(names.address_of("a.com"), a);
        assert_eq!(names.name_of(b).as_deref(), Some("b.com"));
        for unknown in [[11, 198, 0, 3], [11, 198, 0, 0], [127, 0, 0, 1], [255, 255, 255, 255]] {
            assert_eq!(names.name_of(Ipv4Addr::from(unknown)), None);
        }
    }

    #[test]
    fn the_name_that_was_not_used_longest_gives_way() {
        let mut names = Names::new(FAKES);
        let first = names.address_of("first.com");
        let second = names.address_of("second.com");
        for n in 2..MAX_NAMES {
            names.address_of(&format!("{n}.com"));
        }
        assert_eq!(names.name_of(first).as_deref(), Some("first.com"), "and it counts as used");
        names.address_of("one-more.com");
        assert_eq!(names.name_of(second), None);
        assert_eq!(names.address_of("first.com"), first);
        assert_eq!(
            (names.by_name.len(), names.used.len(), names.by_offset.len()),
            (MAX_NAMES, MAX_NAMES, MAX_NAMES)
        );
    }

    #[test]
    fn a_small_range_is_used_up_and_goes_round() {
        let mut names = Names::new(Range { first: Ipv4Addr::new(127, 64, 0, 1), count: 2 });
        let [a, _b, c] = ["a", "b", "c"].map(|name| names.address_of(name));
        assert_eq!(a, c);
        assert_eq!(names.name_of(a).as_deref(), Some("c"));
    }
}
