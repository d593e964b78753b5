//! A core's notes of its processors.

use super::processor::{Processor, Segment};

const NT_PRSTATUS: u32 = 1;
/// QEMU's own note has no type.
const QEMU_NOTE: u32 = 0;
/// Order of the segment registers in a [`Processor`].
const ES: usize = 0;
const CS: usize = 1;
const SS: usize = 2;
const DS: usize = 3;
const FS: usize = 4;
const GS: usize = 5;

/// All notes: the status of each processor, then what QEMU adds for each.
pub(super) fn write(processors: &[Processor]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, processor) in (1u32..).zip(processors) {
        note(&mut out, b"CORE\0", NT_PRSTATUS, &status(processor, number));
    }
    for processor in processors {
        note(&mut out, b"QEMU\0", QEMU_NOTE, &qemu(processor));
    }
    out
}

fn note(out: &mut Vec<u8>, name: &[u8], kind: u32, description: &[u8]) {
    for word in [name.len() as u32, description.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [name, description] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus` of x86-64 Linux: the process id at 32, the registers at 112, 336 bytes in
/// all.
fn status(of: &Processor, number: u32) -> Vec<u8> {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = of.general;
    let segment = |at: usize| of.segments.get(at).copied().unwrap_or_default();
    let selector = |at| u64::from(segment(at).selector);
    let orig_rax = 0;
    let registers = [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        of.ip,
        selector(CS),
        of.flags,
        rsp,
        selector(SS),
        segment(FS).base,
        segment(GS).base,
        selector(DS),
        selector(ES),
        selector(FS),
        selector(GS),
    ];
    let mut out = vec![0; 32];
    out.extend(number.to_le_bytes());
    out.resize(112, 0);
    out.extend(registers.iter().flat_map(|register| register.to_le_bytes()));
    out.resize(336, 0);
    out
}

/// QEMU's note, version 1: its size, the general registers, the segments and tables, the control
/// registers, 440 bytes in all.
fn qemu(of: &Processor) -> Vec<u8> {
    const SIZE: u32 = 440;
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, extended @ ..] = of.general;
    let mut out = Vec::new();
    out.extend(1u32.to_le_bytes());
    out.extend(SIZE.to_le_bytes());
    for register in [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp]
        .into_iter()
        .chain(extended)
        .chain([of.ip, of.flags])
    {
        out.extend(register.to_le_bytes());
    }
    let segments =
        [CS, DS, ES, FS, GS, SS].map(|at| of.segments.get(at).copied().unwrap_or_default());
    for Segment {
        selector,
        base,
        limit,
        flags,
    } in segments.into_iter().chain(of.tables)
    {
        for word in [selector, limit, flags, 0] {
            out.extend(word.to_le_bytes());
        }
        out.extend(base.to_le_bytes());
    }
    out.extend(
        of.control
            .iter()
            .flat_map(|register| register.to_le_bytes()),
    );
    out.extend(of.kernel_gs_base.to_le_bytes());
    debug_assert_eq!(out.len(), SIZE as usize);
    out
}
