//! An x86 processor's registers, out of its device section.

use crate::{DeviceState, Tail};

/// A segment register, or one of the tables' registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Segment {
    pub(super) selector: u32,
    pub(super) base: u64,
    pub(super) limit: u32,
    pub(super) flags: u32,
}

/// The registers of one x86 processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub(super) general: [u64; 16],
    pub(super) ip: u64,
    pub(super) flags: u64,
    /// es, cs, ss, ds, fs, gs.
    pub(super) segments: [Segment; 6],
    /// ldt, tr, gdt, idt.
    pub(super) tables: [Segment; 4],
    /// cr0, cr1 (always 0), cr2, cr3, cr4.
    pub(super) control: [u64; 5],
    pub(super) kernel_gs_base: u64,
}

impl Processor {
    /// The processors of a snapshot, in their order, as far as QEMU's description shows their
    /// registers. Without a description, or for a processor that is not x86, there are none.
    pub fn all(tail: &Tail) -> Vec<Self> {
        let mut sections = tail.states("cpu").unwrap_or_default();
        sections.sort_by_key(|section| section.section.instance);
        let processors: Option<Vec<_>> = sections.iter().map(Self::of).collect();
        processors.unwrap_or_default()
    }

    fn of(state: &DeviceState) -> Option<Self> {
        let control = |number| state.number(&format!("env.cr[{number}]"));
        let segments: Vec<Segment> = state
            .field("env.segs")?
            .chunks(20)
            .map_while(segment)
            .collect();
        let tables =
            ["env.ldt", "env.tr", "env.gdt", "env.idt"].map(|name| segment(state.field(name)?));
        let mut whole = [Segment::default(); 4];
        for (to, from) in whole.iter_mut().zip(tables) {
            *to = from?;
        }
        Some(Self {
            general: general(state.field("env.regs")?)?,
            ip: state.number("env.eip")?,
            flags: state.number("env.eflags")?,
            segments: segments.try_into().ok()?,
            tables: whole,
            control: [control(0)?, 0, control(2)?, control(3)?, control(4)?],
            kernel_gs_base: state.number("env.kernelgsbase").unwrap_or(0),
        })
    }
}

/// Sixteen registers, or the eight of a 32-bit QEMU.
fn general(bytes: &[u8]) -> Option<[u64; 16]> {
    let mut registers = [0; 16];
    let size = match bytes.len() {
        128 => 8,
        32 => 4,
        _ => return None,
    };
    for (register, bytes) in registers.iter_mut().zip(bytes.chunks(size)) {
        *register = bytes
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
    }
    Some(registers)
}

/// Selector, base, limit and flags, big-endian; the base has four bytes of a 32-bit QEMU.
fn segment(bytes: &[u8]) -> Option<Segment> {
    let (selector, rest) = bytes.split_first_chunk::<4>()?;
    let (base, rest) = rest.split_at_checked(bytes.len().checked_sub(12)?)?;
    let (limit, flags) = rest.split_first_chunk::<4>()?;
    Some(Segment {
        selector: u32::from_be_bytes(*selector),
        base: base
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        limit: u32::from_be_bytes(*limit),
        flags: u32::from_be_bytes(flags.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_register_is_read_as_it_is_sent() {
        let bytes = [
            0, 0, 0, 0x10, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0xff, 0xff, 0, 0, 0x93, 0,
        ];
        let found = segment(&bytes).unwrap();
        let expected = Segment {
            selector: 0x10,
            base: 0x1_0000_0002,
            limit: 0xffff,
            flags: 0x9300,
        };
        assert_eq!(found, expected);
        assert_eq!(segment(&bytes[..11]), None);
        assert_eq!(general(&[0; 64]), None);
    }
}
