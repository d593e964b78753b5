//! Pieces of a main channel as they are written.

#[cfg(all(feature = "file", feature = "qmp"))]
use crate::ram::PAGE;
use crate::ram::{EOS, FLUSH, MEM_SIZE, ZERO};
use crate::sections::{
    COMMAND, FOOTER, MAGIC, RAM_NAME, RAM_VERSION, START, SWITCHOVER_START, VERSION,
};

/// Appends a name after its length in one byte. Names are at most 255 bytes: they came from such a
/// field, or are a RAM block's.
pub(crate) fn push_name(out: &mut Vec<u8>, name: &str) {
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend(name.bytes().take(255));
}

/// Appends the channel's first eight bytes.
pub(crate) fn push_header(out: &mut Vec<u8>) {
    out.extend(MAGIC.to_be_bytes());
    out.extend(VERSION.to_be_bytes());
}

/// Appends the header of the RAM section's start.
pub(crate) fn push_ram_start(out: &mut Vec<u8>, id: u32) {
    out.push(START);
    out.extend(id.to_be_bytes());
    push_name(out, RAM_NAME);
    out.extend(0u32.to_be_bytes());
    out.extend(RAM_VERSION.to_be_bytes());
}

/// Appends the header of a part, or of the end, of the RAM section.
pub(crate) fn push_ram_more(out: &mut Vec<u8>, kind: u8, id: u32) {
    out.push(kind);
    out.extend(id.to_be_bytes());
}

/// Appends a section's footer.
pub(crate) fn push_footer(out: &mut Vec<u8>, id: u32) {
    out.push(FOOTER);
    out.extend(id.to_be_bytes());
}

/// Appends the command that says the guest is stopped.
pub(crate) fn push_switchover_start(out: &mut Vec<u8>) {
    out.push(COMMAND);
    out.extend(SWITCHOVER_START.to_be_bytes());
    out.extend(0u16.to_be_bytes());
}

/// Appends the start of the block list.
pub(crate) fn push_total(out: &mut Vec<u8>, total: u64) {
    out.extend((total | MEM_SIZE).to_be_bytes());
}

/// Appends an entry of the block list.
pub(crate) fn push_block(out: &mut Vec<u8>, name: &str, used_length: u64) {
    push_name(out, name);
    out.extend(used_length.to_be_bytes());
}

/// Appends a zero page.
pub(crate) fn push_zero_page(out: &mut Vec<u8>, block: &str, offset: u64) {
    out.extend((offset | ZERO).to_be_bytes());
    push_name(out, block);
    out.push(0);
}

/// Appends a page with its contents.
#[cfg(all(feature = "file", feature = "qmp"))]
pub(crate) fn push_page(out: &mut Vec<u8>, block: &str, offset: u64, contents: &[u8]) {
    out.extend((offset | PAGE).to_be_bytes());
    push_name(out, block);
    out.extend(contents);
}

/// Appends the word that joins a round.
pub(crate) fn push_flush(out: &mut Vec<u8>) {
    out.extend(FLUSH.to_be_bytes());
}

/// Appends the section's end.
pub(crate) fn push_end(out: &mut Vec<u8>) {
    out.extend(EOS.to_be_bytes());
}
