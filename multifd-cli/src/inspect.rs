//! `multifd inspect`: what is in a mapped-ram file.

use crate::args::Inspect;
use crate::failure::Failure;
use crate::memory_map::{MemoryMap, svg};
use crate::{elf, report, snapshot_file};
use indicatif::HumanBytes;
use multifd_transport_file::{AtomicFile, BlockReader, check_target};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write;

#[derive(Serialize)]
struct Inspected {
    ok: bool,
    file: String,
    /// Where in the file the migration begins.
    offset: u64,
    file_bytes: u64,
    machine: String,
    page_size: u32,
    capabilities: Vec<String>,
    ram_bytes: u64,
    blocks: Vec<Block>,
    device_bytes: usize,
    devices: Option<Vec<Device>>,
    has_digest: bool,
    /// How an ELF core's layout is known; or why it is not.
    core: elf::Known,
    /// The state the guest was in, in QEMU's words.
    run_state: Option<String>,
}

#[derive(Serialize)]
struct Block {
    name: String,
    bytes: u64,
    stored_pages: u64,
    zero_pages: u64,
    bitmap_offset: u64,
    pages_offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<Map>,
}

/// A RAM block in at most 1024 cells.
#[derive(Serialize)]
struct Map {
    pages_a_cell: u64,
    /// How much of each is stored.
    stored_percent: Vec<u8>,
}

#[derive(Serialize)]
struct Device {
    name: String,
    instance: u32,
    version: u32,
    bytes: u64,
}

pub(crate) fn run(args: &Inspect) -> Result<(), Failure> {
    let path = &args.image.file;
    if let Some(svg) = &args.svg {
        check_target(svg, args.force)?;
        snapshot_file::never_an_input(svg, &[path])?;
    }
    let opened = args.image.open()?;
    let (file, mapped) = (opened.file(), opened.mapped());
    let size = file.metadata().map_err(|cause| Failure::Open {
        path: path.clone(),
        cause,
    })?;
    let digest = snapshot_file::own_companion(opened.path(), &opened);
    let mut maps = Vec::new();
    let mut blocks = Vec::new();
    for block in &mapped.blocks {
        let reader = BlockReader::new(file, block)?;
        let (layout, pages) = (&block.layout, reader.stored());
        let stored = pages.count_in(0..layout.pages());
        let map = MemoryMap::new(&block.name, layout.pages(), pages);
        blocks.push(Block {
            name: block.name.clone(),
            bytes: layout.used_length(),
            stored_pages: stored,
            zero_pages: layout.pages() - stored,
            bitmap_offset: layout.header().bitmap_offset,
            pages_offset: layout.header().pages_offset,
            map: args.map.then(|| Map {
                pages_a_cell: map.pages_a_cell,
                stored_percent: map.cells.clone(),
            }),
        });
        maps.push(map);
    }
    let device = |section: multifd_qemu::DeviceSection| Device {
        name: section.name,
        instance: section.instance,
        version: section.version,
        bytes: section.size,
    };
    let result = Inspected {
        ok: true,
        file: path.display().to_string(),
        offset: mapped.base,
        file_bytes: size.len(),
        machine: mapped.configuration.machine.clone(),
        page_size: mapped.page_size(),
        capabilities: mapped.configuration.capabilities().to_vec(),
        ram_bytes: mapped.ram_bytes(),
        blocks,
        device_bytes: mapped.tail.bytes().len(),
        devices: mapped
            .tail
            .sections()
            .map(|list| list.into_iter().map(device).collect()),
        has_digest: digest.is_some(),
        core: elf::known(mapped, digest.as_ref()),
        run_state: mapped.tail.run_state(),
    };
    if let Some(path) = &args.svg {
        let drawing = svg(&format!("{} ({})", result.file, result.machine), &maps);
        let out = AtomicFile::create(path, args.force)?;
        let mut file = out.file();
        file.write_all(drawing.as_bytes())
            .map_err(|cause| Failure::Open {
                path: path.clone(),
                cause,
            })?;
        out.commit()?;
    }
    report::print(args.show.json, &result, text(&result, &maps).trim_end())
}

fn text(result: &Inspected, maps: &[MemoryMap]) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        out,
        "{}: machine {}, {} of RAM in pages of {} bytes, {}checksums{}\n\n{:<32} {:>14} {:>10} {:>10} {:>14} {:>14}",
        result.file,
        report::tame(&result.machine),
        HumanBytes(result.ram_bytes),
        result.page_size,
        if result.has_digest { "" } else { "no " },
        match &result.run_state {
            Some(state) => format!(", guest {}", report::tame(state)),
            None => String::new(),
        },
        "RAM block",
        "bytes",
        "stored",
        "zero",
        "bitmap at",
        "pages at"
    );
    for block in &result.blocks {
        let _ = writeln!(
            out,
            "{:<32} {:>14} {:>10} {:>10} {:>14} {:>14}",
            report::tame(&block.name),
            block.bytes,
            block.stored_pages,
            block.zero_pages,
            block.bitmap_offset,
            block.pages_offset
        );
    }
    let _ = writeln!(out, "\n{}", result.core.line());
    match &result.devices {
        Some(devices) => {
            let _ = writeln!(
                out,
                "\n{:<48} {:>8} {:>8} {:>10}",
                "device section", "instance", "version", "bytes"
            );
            for device in devices {
                let Device {
                    name,
                    instance,
                    version,
                    bytes,
                } = device;
                let _ = writeln!(
                    out,
                    "{:<48} {instance:>8} {version:>8} {bytes:>10}",
                    report::tame(name)
                );
            }
        }
        None => {
            let _ = writeln!(
                out,
                "\n{} bytes of device sections, without a description that fits",
                result.device_bytes
            );
        }
    }
    if maps.iter().any(|map| map.cells.len() > 1) {
        let _ = writeln!(out, "\n{}", MemoryMap::LEGEND);
    }
    for map in maps.iter().filter(|map| map.cells.len() > 1) {
        let _ = writeln!(
            out,
            "\n{}, {} pages a cell:\n{}",
            report::tame(&map.name),
            map.pages_a_cell,
            map.text().trim_end()
        );
    }
    out
}
