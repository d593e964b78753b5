//! `multifd inspect`: what is in a mapped-ram file.

use crate::args::Inspect;
use crate::failure::Failure;
use crate::memory_map::{MemoryMap, svg};
use crate::{report, snapshot_file};
use indicatif::HumanBytes;
use multifd_transport_file::{BlockReader, companion};
use serde::Serialize;
use std::fmt::Write;

#[derive(Serialize)]
struct Inspected {
    ok: bool,
    file: String,
    file_bytes: u64,
    machine: String,
    page_size: u32,
    capabilities: Vec<String>,
    ram_bytes: u64,
    blocks: Vec<Block>,
    device_bytes: usize,
    devices: Option<Vec<Device>>,
    has_digest: bool,
}

#[derive(Serialize)]
struct Block {
    name: String,
    bytes: u64,
    stored_pages: u64,
    zero_pages: u64,
    bitmap_offset: u64,
    pages_offset: u64,
    pages_a_cell: u64,
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
    let (file, mapped) = snapshot_file::inspect(&args.file)?;
    let size = file.metadata().map_err(|source| Failure::Open {
        path: args.file.clone(),
        source,
    })?;
    let mut maps = Vec::new();
    let mut blocks = Vec::new();
    for block in &mapped.blocks {
        let placed = snapshot_file::placed(block);
        let reader = BlockReader::new(&file, &placed)?;
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
            pages_a_cell: map.pages_a_cell,
            stored_percent: map.cells.clone(),
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
        file: args.file.display().to_string(),
        file_bytes: size.len(),
        machine: mapped.configuration.machine.clone(),
        page_size: mapped.configuration.page_size(),
        capabilities: mapped.configuration.capabilities().to_vec(),
        ram_bytes: mapped.ram_bytes(),
        blocks,
        device_bytes: mapped.tail.bytes().len(),
        devices: mapped
            .tail
            .sections()
            .map(|list| list.into_iter().map(device).collect()),
        has_digest: companion(&args.file).exists(),
    };
    if let Some(path) = &args.svg {
        let drawing = svg(&format!("{} ({})", result.file, result.machine), &maps);
        std::fs::write(path, drawing).map_err(|source| Failure::Open {
            path: path.clone(),
            source,
        })?;
    }
    report::print(args.show.json, &result, text(&result, &maps).trim_end());
    Ok(())
}

fn text(result: &Inspected, maps: &[MemoryMap]) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        out,
        "{}: machine {}, {} of RAM in pages of {} bytes, {}checksums\n\n{:<32} {:>14} {:>10} {:>10} {:>14} {:>14}",
        result.file,
        report::tame(&result.machine),
        HumanBytes(result.ram_bytes),
        result.page_size,
        if result.has_digest { "" } else { "no " },
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
