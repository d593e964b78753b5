//! An ELF core of guest physical memory: where RAM lies for the guest, and the headers that say so.

use multifd_qemu::MappedFile;

/// Where the pages begin in the file: headers before that, and file offsets that are multiples of a page.
const FIRST_PAGE: u64 = 4096;
const FOUR_GIB: u64 = 1 << 32;

/// A piece of a RAM block at its guest physical address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Index of the block in the file.
    pub(crate) block: usize,
    /// Offset in the block, bytes.
    pub(crate) offset: u64,
    /// Guest physical address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Where it lies in the core, bytes.
    pub(crate) at: u64,
}

/// The segments of an x86 PC's memory, as QEMU lays it out without `max-ram-below-4g`; an error for other machines.
pub(crate) fn segments(file: &MappedFile) -> Result<Vec<Segment>, String> {
    let machine = &file.configuration.machine;
    let ram = file
        .blocks
        .iter()
        .position(|block| block.name == "pc.ram")
        .or_else(|| {
            // A memory backend goes by its own name; nothing else is as large.
            let lengths = file.blocks.iter().enumerate();
            lengths
                .max_by_key(|(_, block)| block.layout.used_length())
                .map(|(index, _)| index)
        });
    let (ram, len) = ram
        .and_then(|index| Some((index, file.blocks.get(index)?.layout.used_length())))
        .ok_or("the file has no RAM block")?;
    let low = low_memory(machine, len).ok_or_else(|| {
        format!(
            "where the memory of a machine {machine:?} lies is not known; x86 machines (pc, q35, microvm) are"
        )
    })?;
    let mut segments = Vec::new();
    let mut add = |block, offset, address, len| {
        let at = segments
            .last()
            .map_or(FIRST_PAGE, |last: &Segment| last.at + last.len);
        segments.push(Segment {
            block,
            offset,
            address,
            len,
            at,
        });
    };
    add(ram, 0, 0, low.min(len));
    if let Some(bios) = file.blocks.iter().position(|block| block.name == "pc.bios") {
        let len = file
            .blocks
            .get(bios)
            .map_or(0, |block| block.layout.used_length());
        add(bios, 0, FOUR_GIB - len.min(FOUR_GIB), len);
    }
    if len > low {
        add(ram, low, FOUR_GIB, len - low);
    }
    Ok(segments)
}

/// Bytes of RAM below 4 GiB on a machine with `ram` bytes.
fn low_memory(machine: &str, ram: u64) -> Option<u64> {
    if machine.starts_with("pc-q35-") {
        Some(if ram >= 0xb000_0000 {
            0x8000_0000
        } else {
            0xb000_0000
        })
    } else if machine.starts_with("pc-i440fx-") || machine == "pc" {
        Some(if ram >= 0xe000_0000 {
            0xc000_0000
        } else {
            0xe000_0000
        })
    } else if machine == "microvm" {
        Some(0xc000_0000)
    } else {
        None
    }
}

/// The headers of an x86-64 core with these segments: the ELF header, and one program header for each.
pub(crate) fn headers(segments: &[Segment]) -> Vec<u8> {
    const EHSIZE: u16 = 64;
    const PHENTSIZE: u16 = 56;
    let mut out = Vec::new();
    // 64-bit, little-endian, version 1, System V.
    out.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let core: u16 = 4;
    let x86_64: u16 = 62;
    out.extend(core.to_le_bytes());
    out.extend(x86_64.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    // No entry; program headers right after this one; no sections; no flags.
    out.extend(0u64.to_le_bytes());
    out.extend(u64::from(EHSIZE).to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(EHSIZE.to_le_bytes());
    out.extend(PHENTSIZE.to_le_bytes());
    out.extend(u16::try_from(segments.len()).unwrap_or(0).to_le_bytes());
    out.extend([0; 6]);
    for segment in segments {
        let (load, read_write_execute) = (1u32, 7u32);
        out.extend(load.to_le_bytes());
        out.extend(read_write_execute.to_le_bytes());
        // Offset; virtual and physical address, which are the same here; bytes in the file and in memory; alignment.
        for value in [
            segment.at,
            segment.address,
            segment.address,
            segment.len,
            segment.len,
            FIRST_PAGE,
        ] {
            out.extend(value.to_le_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_memory_is_where_qemu_puts_it() {
        assert_eq!(low_memory("pc-i440fx-10.0", 1 << 30), Some(0xe000_0000));
        assert_eq!(low_memory("pc-i440fx-10.0", 4 << 30), Some(0xc000_0000));
        assert_eq!(low_memory("pc-q35-10.0", 2 << 30), Some(0xb000_0000));
        assert_eq!(low_memory("pc-q35-10.0", 4 << 30), Some(0x8000_0000));
        assert_eq!(low_memory("virt-10.0", 4 << 30), None);
    }

    #[test]
    fn headers_have_the_sizes_they_say() {
        let segment = Segment {
            block: 0,
            offset: 0,
            address: 0,
            len: 4096,
            at: FIRST_PAGE,
        };
        assert_eq!(headers(&[segment.clone(), segment]).len(), 64 + 2 * 56);
    }
}
