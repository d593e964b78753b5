//! The RAM section's body: words of flags and addresses, up to the end of the section.

use crate::input::Input;
use crate::ram_sink::RamSink;
use crate::{Error, Limits};
use multifd_core::BlockError;
use std::io::Read;

pub(crate) const ZERO: u64 = 0x02;
pub(crate) const MEM_SIZE: u64 = 0x04;
pub(crate) const PAGE: u64 = 0x08;
pub(crate) const EOS: u64 = 0x10;
const CONTINUE: u64 = 0x20;
const XBZRLE: u64 = 0x40;
const HOOK: u64 = 0x80;
const COMPRESSED: u64 = 0x100;
pub(crate) const FLUSH: u64 = 0x200;
/// Flags are the low 12 bits, whatever the guest's page size.
const FLAGS: u64 = 0xfff;

/// A RAM block as the setup list names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockInfo {
    /// The block's name.
    pub name: String,
    /// Bytes in use: a positive multiple of the page size.
    pub used_length: u64,
}

/// One record of the body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The list of all blocks follows: their lengths add up to `total`.
    Blocks { total: u64 },
    /// A zero page, or a page whose bytes follow.
    Page {
        address: u64,
        zero: bool,
        same_block: bool,
    },
    /// Join the round.
    Flush,
    /// The end of the section.
    End,
}

/// Reads one record's word.
pub(crate) fn read_record<R: Read>(input: &mut Input<R>) -> Result<Record, Error> {
    let offset = input.offset();
    let word = input.u64("a word of the RAM section")?;
    let (flags, address) = (word & FLAGS, word & !FLAGS);
    let refused = |what: &str, advice: &str| {
        Err(Error::Refused {
            offset,
            what: what.into(),
            advice: advice.into(),
        })
    };
    match flags {
        MEM_SIZE => Ok(Record::Blocks { total: address }),
        FLUSH => Ok(Record::Flush),
        EOS => Ok(Record::End),
        _ if flags & !CONTINUE == ZERO || flags & !CONTINUE == PAGE => Ok(Record::Page {
            address,
            zero: flags & ZERO != 0,
            same_block: flags & CONTINUE != 0,
        }),
        _ if flags & XBZRLE != 0 => refused("XBZRLE pages", "switch the xbzrle capability off"),
        _ if flags & HOOK != 0 => refused("an RDMA hook", "migrate over tcp or unix, not rdma"),
        _ if flags & COMPRESSED != 0 => {
            refused("compressed pages", "switch the compress capability off")
        }
        _ => Err(Error::Malformed {
            offset,
            what: "a word of the RAM section",
            found: format!("{word:#x}"),
            expected: "a known flag".into(),
        }),
    }
}

/// Reads one entry of the block list, without the mapped-ram header that may follow it. `left` are
/// the bytes of RAM not named yet.
pub(crate) fn read_block<R: Read>(
    input: &mut Input<R>,
    left: u64,
    page_size: u32,
) -> Result<BlockInfo, Error> {
    let offset = input.offset();
    let name = input.name("a RAM block's name")?;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Error::Malformed {
            offset,
            what: "a RAM block's name",
            found: format!("{name:?}"),
            expected: "1 to 255 bytes without control characters".into(),
        });
    }
    let offset = input.offset();
    let used_length = input.u64("a RAM block's length")?;
    if used_length == 0 || used_length > left || !used_length.is_multiple_of(page_size.into()) {
        return Err(Error::Malformed {
            offset,
            what: "a RAM block's length",
            found: format!("{used_length:#x} (block {name:?})"),
            expected: format!(
                "a positive multiple of the page size {page_size:#x}, at most {left:#x}, what is left of the total"
            ),
        });
    }
    Ok(BlockInfo { name, used_length })
}

/// Checks the total before any block is read.
pub(crate) fn check_total(total: u64, offset: u64, limits: &Limits) -> Result<(), Error> {
    if total == 0 {
        return Err(Error::Malformed {
            offset,
            what: "the guest's RAM",
            found: "0 bytes".into(),
            expected: "at least a page".into(),
        });
    }
    if total > limits.ram_bytes {
        return Err(Error::TooLarge {
            offset,
            what: "the guest's RAM",
            found: total,
            limit: limits.ram_bytes,
        });
    }
    Ok(())
}

/// Reads the whole block list of a migration over sockets.
pub(crate) fn read_blocks<R: Read>(
    input: &mut Input<R>,
    total: u64,
    page_size: u32,
    limits: &Limits,
) -> Result<Vec<BlockInfo>, Error> {
    check_total(total, input.offset(), limits)?;
    let mut blocks = Vec::new();
    let mut left = total;
    while left > 0 {
        check_count(blocks.len(), input.offset(), limits)?;
        let block = read_block(input, left, page_size)?;
        left -= block.used_length;
        blocks.push(block);
    }
    Ok(blocks)
}

/// Checks the number of blocks before another is read.
pub(crate) fn check_count(count: usize, offset: u64, limits: &Limits) -> Result<(), Error> {
    if count >= limits.blocks {
        return Err(Error::TooLarge {
            offset,
            what: "the number of RAM blocks",
            found: count as u64 + 1,
            limit: limits.blocks as u64,
        });
    }
    Ok(())
}

/// Reads a page record's block and contents, and has the sink put the page in place. `known` are the
/// RAM blocks and the bytes of a page; `last` is the block of the record before, `room` a buffer to
/// be used again.
pub(crate) fn read_page<R: Read>(
    input: &mut Input<R>,
    (blocks, page_size): (&[BlockInfo], u32),
    (address, zero, same_block): (u64, bool, bool),
    (last, room): (&mut Option<usize>, &mut Vec<u8>),
    sink: &mut dyn RamSink,
) -> Result<(), Error> {
    let offset = input.offset();
    let mut found = "the last one, and there was none".into();
    if !same_block {
        let name = input.name("a page's RAM block")?;
        // Mostly it is the block of the page before.
        let is_last = last
            .and_then(|at| blocks.get(at))
            .is_some_and(|block| block.name == name);
        if !is_last {
            *last = blocks.iter().position(|block| block.name == name);
        }
        found = format!("{name:?}");
    }
    let known = last.and_then(|at| Some((at, blocks.get(at)?)));
    let (number, block) = known.ok_or_else(|| Error::Malformed {
        offset,
        what: "a page's RAM block",
        found,
        expected: "a block of the setup list".into(),
    })?;
    if !address.is_multiple_of(page_size.into()) {
        return Err(Error::Malformed {
            offset,
            what: "a page's address",
            found: format!("{address:#x}"),
            expected: format!("a multiple of the page size {page_size:#x}"),
        });
    }
    let end = address.checked_add(page_size.into());
    if end.is_none_or(|end| end > block.used_length) {
        return Err(Error::Block(BlockError::Outside {
            block: block.name.clone(),
            offset: address,
            len: page_size.into(),
            block_len: block.used_length,
        }));
    }
    if zero {
        let offset = input.offset();
        let fill = input.u8("a zero page's byte")?;
        if fill != 0 {
            return Err(Error::Malformed {
                offset,
                what: "a zero page's byte",
                found: fill.to_string(),
                expected: "0".into(),
            });
        }
        return sink.page(number, address, None);
    }
    room.resize(page_size as usize, 0);
    input.fill(room, "a page")?;
    sink.page(number, address, Some(room))
}
