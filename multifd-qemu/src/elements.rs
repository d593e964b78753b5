//! The elements of a main channel in their order, for a stream and for a file: the RAM section's
//! parts, and what may stand between them.

use crate::input::Input;
use crate::sections::{
    COMMAND, END, EOF, FOOTER, FULL, PART, START, SWITCHOVER_START, read_command, read_ram_start,
};
use crate::{Error, Limits};
use multifd_core::HeldMemory;
use std::io::Read;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    /// A part of the RAM section: its body, then its footer. The first one has the block list.
    Ram,
    /// The device sections, whose first byte this is.
    Devices(u8),
}

/// How far a main channel has come.
#[derive(Debug)]
pub(crate) struct Elements {
    /// The first byte of the element that comes next, if it has been read.
    kind: Option<u8>,
    /// The number of the RAM section, once it has begun.
    id: Option<u32>,
    /// A part after the first has come.
    parts: bool,
    /// The RAM section has ended.
    ended: bool,
    /// The source has said that the guest is stopped.
    pub(crate) switchover_start: bool,
    /// Device sections that came before the RAM's pages, byte for byte, their footers included.
    pub(crate) early: Vec<u8>,
    /// A command that asks for an answer, and where: what follows tells why it was sent.
    asks: Option<(u64, u16)>,
}

impl Elements {
    /// The elements from the one on whose first byte is `kind`.
    pub(crate) fn new(kind: u8) -> Self {
        Self {
            kind: Some(kind),
            id: None,
            parts: false,
            ended: false,
            switchover_start: false,
            early: Vec::new(),
            asks: None,
        }
    }

    /// The number of the RAM section.
    pub(crate) fn ram_section(&self) -> u32 {
        self.id.unwrap_or(0)
    }

    /// Whether the RAM section's end has come. It has none where QEMU saves a background snapshot.
    pub(crate) fn ram_has_ended(&self) -> bool {
        self.ended
    }

    /// Reads up to the next part of the RAM section, or to the device sections. Memory for what is
    /// kept is taken from `held`.
    pub(crate) fn next<R: Read>(
        &mut self,
        input: &mut Input<R>,
        limits: &Limits,
        held: &mut HeldMemory,
    ) -> Result<Element, Error> {
        loop {
            let kind = match self.kind.take() {
                Some(kind) => kind,
                None => input.u8("the next section")?,
            };
            let offset = input.offset().saturating_sub(1);
            if kind != COMMAND {
                self.refuse_questions()?;
            }
            match (kind, self.id) {
                (START, None) => {
                    self.id = Some(read_ram_start(input)?);
                    return Ok(Element::Ram);
                }
                (START, Some(_)) => {
                    let found = read_ram_start(input)?;
                    return Err(unexpected(
                        offset,
                        format!("a second RAM section (id {found})"),
                    ));
                }
                (PART | END, Some(id)) if !self.ended => {
                    input.expect_u32("a section's id", id)?;
                    self.more(kind);
                    return Ok(Element::Ram);
                }
                (FULL, Some(id)) if !self.parts => {
                    match self.read_early(id, input, limits, held)? {
                        COMMAND => self.switchover_start = true,
                        kind => {
                            self.more(kind);
                            return Ok(Element::Ram);
                        }
                    }
                }
                (COMMAND, _) => match read_command(input, self.asks)? {
                    SWITCHOVER_START => self.switchover_start = true,
                    asks => self.asks = Some(*self.asks.get_or_insert((offset, asks))),
                },
                (FULL | EOF, Some(_)) if self.parts => return Ok(Element::Devices(kind)),
                (GIVEN_UP, _) => {
                    return Err(Error::Truncated {
                        offset,
                        what: "the sections: the source has given up",
                    });
                }
                _ => return Err(unexpected(offset, format!("the element {kind:#04x}"))),
            }
        }
    }

    fn more(&mut self, kind: u8) {
        self.parts = true;
        self.ended = kind == END;
    }

    /// A source that opens the return path waits for answers. Nothing but the commands before this
    /// told why.
    fn refuse_questions(&self) -> Result<(), Error> {
        let Some((offset, command)) = self.asks else {
            return Ok(());
        };
        Err(Error::Refused {
            offset,
            what: format!("a return-path command ({command}), which is not supported"),
            advice: "switch the return-path capability off".into(),
        })
    }

    /// Reads device sections that come before the RAM's pages, such as virtio-mem's: they have no
    /// length on the wire. They end in a footer that another part of the RAM section follows, or
    /// the command that says the guest is stopped; the first bytes of either are read then, and its
    /// type is returned.
    fn read_early<R: Read>(
        &mut self,
        ram_section: u32,
        input: &mut Input<R>,
        limits: &Limits,
        held: &mut HeldMemory,
    ) -> Result<u8, Error> {
        let offset = input.offset();
        let bytes = &mut self.early;
        bytes.push(FULL);
        let section = ram_section.to_be_bytes();
        let switchover = SWITCHOVER_START.to_be_bytes();
        loop {
            if bytes.len() == bytes.capacity() {
                let more = (bytes.capacity() as u64 * 2).max(4096);
                held.grow_to("the device sections", more)
                    .map_err(|cause| Error::Memory { offset, cause })?;
                bytes.reserve_exact(bytes.capacity().max(4096));
            }
            bytes.push(input.u8("a device section before the RAM")?);
            if bytes.len() as u64 > limits.tail_bytes {
                return Err(Error::TooLarge {
                    offset,
                    what: "the device sections",
                    found: bytes.len() as u64,
                    limit: limits.tail_bytes,
                });
            }
            let kind = match bytes.last_chunk::<10>() {
                Some([FOOTER, _, _, _, _, kind @ (PART | END), id @ ..]) if *id == section => *kind,
                Some([FOOTER, _, _, _, _, COMMAND, a, b, 0, 0]) if [*a, *b] == switchover => {
                    COMMAND
                }
                _ => continue,
            };
            bytes.truncate(bytes.len() - 5);
            return Ok(kind);
        }
    }
}

/// A byte that no element begins with: what a source of ours ends a connection with when it gives up
/// on the migration, where a reset would not show that.
const GIVEN_UP: u8 = 0xff;

/// The error for an element that cannot come now.
pub(crate) fn unexpected(offset: u64, found: String) -> Error {
    Error::Malformed {
        offset,
        what: "what comes next",
        found,
        expected: "the RAM section, then device sections".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_core::MemoryBudget;

    #[test]
    fn a_source_that_gives_up_says_so() {
        let mut held = MemoryBudget::default()
            .take("the device sections", 0)
            .unwrap();
        let mut next = |first: u8| {
            let bytes = [first; 4];
            let mut input = Input::new(&bytes[..], 9, None);
            let outcome = Elements::new(first).next(&mut input, &Limits::default(), &mut held);
            outcome.err().map(|error| error.to_string())
        };
        let given_up = next(0xff).unwrap();
        assert!(
            given_up.contains("the source has given up: the migration is not complete"),
            "{given_up}"
        );
        assert!(next(0xfe).unwrap().contains("the element 0xfe"));
    }
}
