//! QEMU's migration stream, as far as it must be understood to put a machine's state together from two parts.
//!
//! ```text
//!   template's state   magic, version │ configuration │ section "ram": small memories │ device sections │ end │ description
//!                      └─────────────────────── head ──────────────────────────────┘
//!   devices alone      magic, version │ device sections │ end          (`xen-save-devices-state`)
//!                                       └───── body ────┘
//!   new state          head + body
//! ```
//! The section "ram" names all memories, and has the pages of those that are no file: firmware and its tables, a few KiB. They
//! are taken from the template, since no guest changes them in its normal life, and only a reset would read them, which ends
//! these machines. Nothing is loaded here: a length that lies leads to a refusal, never beyond the buffer.
//!
//! Written from QEMU's `migration/savevm.c` and `migration/ram.c`.

/// `QEMU_VM_FILE_MAGIC` and the version, 3.
const MAGIC: [u8; 8] = *b"QEVM\x00\x00\x00\x03";
const END: u8 = 0x00;
const START: u8 = 0x01;
const PART: u8 = 0x02;
const LAST: u8 = 0x03;
const FULL: u8 = 0x04;
const SUBSECTION: u8 = 0x05;
const CONFIGURATION: u8 = 0x07;
const FOOTER: u8 = 0x7e;

/// Flags in the low bits of a page's address.
const FILL: u64 = 0x02;
const SIZES: u64 = 0x04;
const PAGE: u64 = 0x08;
const END_OF_PART: u64 = 0x10;
const SAME_MEMORY: u64 = 0x20;
const FLAGS: u64 = 0xfff;
const PAGE_BYTES: usize = 4096;
/// Longest name of a machine type.
const LONGEST_NAME: usize = 256;

/// Returns the head of a whole state, which was written without the memories that are files. `None` for a stream that this
/// code does not know.
pub(super) fn head(state: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader { bytes: state, at: 0 };
    if reader.take(MAGIC.len())? != MAGIC {
        return None;
    }
    if reader.peek()? == CONFIGURATION {
        reader.configuration()?;
    }
    let mut ended = false;
    loop {
        match reader.peek()? {
            START | PART | LAST => ended |= reader.ram_section()?,
            FULL if ended => return state.get(..reader.at),
            _ => return None,
        }
    }
}

/// Returns the sections and the end of a state that has devices alone.
pub(super) fn body(devices: &[u8]) -> Option<&[u8]> {
    let body = devices.strip_prefix(&MAGIC)?;
    (body.first() == Some(&FULL) && body.last() == Some(&END)).then_some(body)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A name with its length in a byte.
    fn name(&mut self) -> Option<&'a [u8]> {
        let len = self.byte()?;
        self.take(usize::from(len))
    }

    /// The machine type, and subsections, of which the list of capabilities is the only one known.
    fn configuration(&mut self) -> Option<()> {
        self.byte()?;
        let len = usize::try_from(self.u32()?).ok().filter(|len| *len <= LONGEST_NAME)?;
        self.take(len)?;
        while self.peek()? == SUBSECTION {
            self.byte()?;
            if self.name()? != b"configuration/capabilities" {
                return None;
            }
            self.u32()?; // version
            for _ in 0..self.u32()? {
                self.name()?;
            }
        }
        Some(())
    }

    /// A section of the memories; true when it is the last of them.
    fn ram_section(&mut self) -> Option<bool> {
        let kind = self.byte()?;
        let id = self.u32()?;
        if kind == START {
            if self.name()? != b"ram" {
                return None;
            }
            self.take(8)?; // instance, version
        }
        self.pages()?;
        (self.byte()? == FOOTER && self.u32()? == id).then_some(kind == LAST)
    }

    fn pages(&mut self) -> Option<()> {
        loop {
            let word = self.u64()?;
            match word & FLAGS {
                END_OF_PART => return Some(()),
                SIZES => {
                    let mut left = word & !FLAGS;
                    while left > 0 {
                        self.name()?;
                        // A memory of no bytes would be a list without an end.
                        left = left.checked_sub(self.u64().filter(|len| *len > 0)?)?;
                        self.u64()?; // its address, which goes with memories that are left out
                    }
                }
                flags => {
                    if flags & SAME_MEMORY == 0 {
                        self.name()?;
                    }
                    match flags & !SAME_MEMORY {
                        FILL => drop(self.byte()?),
                        PAGE => drop(self.take(PAGE_BYTES)?),
                        _ => return None,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &str) -> Vec<u8> {
        [&[name.len() as u8], name.as_bytes()].concat()
    }

    /// A state as QEMU 7.2 writes it; its head, and what follows.
    fn state() -> (Vec<u8>, Vec<u8>) {
        let mut head = [&MAGIC[..], &[CONFIGURATION], &7u32.to_be_bytes(), b"microvm"].concat();
        head.push(SUBSECTION);
        head.extend(named("configuration/capabilities"));
        head.extend([1u32.to_be_bytes(), 1u32.to_be_bytes()].concat());
        head.extend(named("x-ignore-shared"));
        // The list of memories.
        head.push(START);
        head.extend(2u32.to_be_bytes());
        head.extend(named("ram"));
        head.extend([0u32.to_be_bytes(), 4u32.to_be_bytes()].concat());
        head.extend((0x20_2000u64 | SIZES).to_be_bytes());
        for (name, len) in [("mem", 0x20_0000u64), ("bios", 0x2000)] {
            head.extend(named(name));
            head.extend([len.to_be_bytes(), 0u64.to_be_bytes()].concat());
        }
        head.extend(END_OF_PART.to_be_bytes());
        head.extend([&[FOOTER], &2u32.to_be_bytes()[..]].concat());
        // One page, and one of zeros.
        for kind in [PART, LAST] {
            head.push(kind);
            head.extend(2u32.to_be_bytes());
            if kind == LAST {
                head.extend(PAGE.to_be_bytes());
                head.extend(named("bios"));
                // Bytes that would be sections, were they not a page's.
                head.extend([FULL; PAGE_BYTES]);
                head.extend((0x1000 | FILL | SAME_MEMORY).to_be_bytes());
                head.push(0);
            }
            head.extend(END_OF_PART.to_be_bytes());
            head.extend([&[FOOTER], &2u32.to_be_bytes()[..]].concat());
        }
        let mut devices = vec![FULL];
        devices.extend(0u32.to_be_bytes());
        devices.extend(named("timer"));
        devices.extend([7; 40]);
        devices.push(END);
        (head, devices)
    }

    #[test]
    fn a_state_is_put_together_from_two() {
        let (first, devices) = state();
        let whole = [&first[..], &devices, b"\x06{}"].concat();
        assert_eq!(head(&whole), Some(&first[..]));
        let alone = [&MAGIC[..], &devices].concat();
        assert_eq!(body(&alone), Some(&devices[..]));
        let new = [head(&whole).unwrap(), body(&alone).unwrap()].concat();
        assert_eq!(head(&new), Some(&first[..]), "it serves the next one");
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_refused() {
        let (first, devices) = state();
        let whole = [&first[..], &devices].concat();
        for len in 0..=first.len() {
            assert_eq!(head(&whole[..len]), None, "{len}");
        }
        let alone = [&MAGIC[..], &devices].concat();
        assert_eq!(body(&alone[..alone.len() - 1]), None);
        assert_eq!(body(&devices), None);
        assert_eq!(body(&MAGIC), None);
        // A list of memories without end.
        let mut endless = [&MAGIC[..], &[START], &2u32.to_be_bytes()].concat();
        endless.extend(named("ram"));
        endless.extend([0; 8]);
        endless.extend((0x1000 | SIZES).to_be_bytes());
        endless.extend([0; 1 << 16]);
        assert_eq!(head(&endless), None);
    }

    proptest! {
        #[test]
        fn no_bytes_lead_astray(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
            let (first, devices) = state();
            let mut whole = [first, devices].concat();
            for (at, byte) in changes {
                let at = at.index(whole.len());
                whole[at] = byte;
            }
            if let Some(found) = head(&whole) {
                prop_assert!(whole.starts_with(found) && whole.get(found.len()) == Some(&FULL));
            }
        }
    }
}
