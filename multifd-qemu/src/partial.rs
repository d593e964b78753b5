//! A VM most of whose RAM is in place already: the rest of it over the main connection.

use crate::output::{
    push_block, push_end, push_footer, push_header, push_page, push_ram_more, push_ram_start,
    push_switchover_start, push_total, push_zero_page,
};
use crate::sections::{END, PART};
use crate::{Error, MappedFile};
use std::io::Write;

/// Bytes that are written at once.
const ROOM: usize = 256 << 10;

/// Reads a page of a RAM block, `offset` bytes into it: whether it is zero, and otherwise its
/// contents.
pub(crate) type ReadPage<'a> = dyn FnMut(&str, u64, &mut [u8]) -> Result<bool, Error> + 'a;

/// Sends the stream of a VM with only these pages of it: the numbers of blocks and offsets in them,
/// bytes. Returns the bytes written. What is not sent stays as it is at the destination.
pub(crate) fn send_partial(
    vm: &MappedFile,
    pages: impl Iterator<Item = (usize, u64)>,
    read: &mut ReadPage<'_>,
    mut main: impl Write,
) -> Result<u64, Error> {
    let id = vm.ram_section;
    let mut written = 0;
    let mut out = Vec::with_capacity(2 * ROOM);
    push_header(&mut out);
    vm.configuration.with_mapped_ram(false).write(&mut out);
    push_ram_start(&mut out, id);
    push_total(&mut out, vm.ram_bytes());
    let blocks = vm.block_infos();
    for block in &blocks {
        push_block(&mut out, &block.name, block.used_length);
    }
    push_end(&mut out);
    push_footer(&mut out, id);
    out.extend(vm.tail.early());
    push_ram_more(&mut out, PART, id);
    let mut page = vec![0; vm.page_size() as usize];
    for (number, offset) in pages {
        let Some(block) = blocks.get(number) else {
            continue;
        };
        if read(&block.name, offset, &mut page)? {
            push_zero_page(&mut out, &block.name, offset);
        } else {
            push_page(&mut out, &block.name, offset, &page);
        }
        if out.len() >= ROOM {
            put(&mut main, &mut out, &mut written)?;
        }
    }
    push_end(&mut out);
    push_footer(&mut out, id);
    if vm.switchover_start {
        push_switchover_start(&mut out);
    }
    push_ram_more(&mut out, END, id);
    push_end(&mut out);
    push_footer(&mut out, id);
    out.extend(vm.tail.bytes());
    put(&mut main, &mut out, &mut written)?;
    Ok(written)
}

fn put(main: &mut impl Write, out: &mut Vec<u8>, written: &mut u64) -> Result<(), Error> {
    let result = main.write_all(out).and_then(|()| main.flush());
    result.map_err(|cause| Error::Io {
        offset: *written,
        what: "RAM and the device sections",
        cause,
    })?;
    *written += out.len() as u64;
    out.clear();
    Ok(())
}
