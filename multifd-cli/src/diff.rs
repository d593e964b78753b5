//! `multifd diff`: in which pages do two mapped-ram files differ?

use crate::args::Diff;
use crate::failure::Failure;
use crate::image_file::{Opened, in_store};
use crate::report;
use multifd_qemu::store::is_layout;
use multifd_transport_file::{BlockReader, changed_pages};
use multifd_transport_store::{BlockDifference, ChunkCache, SnapshotAddress, differences};
use serde::Serialize;
use std::fmt::Write;

/// Bytes of chunks that are kept while snapshots are compared.
const CACHE: usize = 4 << 20;

#[derive(Serialize)]
struct Differences {
    ok: bool,
    same: bool,
    changed_pages: u64,
    blocks: Vec<Block>,
    only_in_one: Vec<String>,
    only_in_other: Vec<String>,
    devices_differ: bool,
}

#[derive(Serialize)]
struct Block {
    name: String,
    pages: u64,
    changed_pages: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranges: Option<Vec<Range>>,
}

#[derive(Serialize)]
struct Range {
    offset: u64,
    bytes: usize,
}

pub(crate) fn run(args: &Diff) -> Result<(), Failure> {
    if let (Some(one), Some(other)) = (in_store(&args.one)?, in_store(&args.other)?) {
        return in_stores(args, &one, &other);
    }
    let (one_file, other_file) = (
        Opened::open(&args.one, args.offset, &args.key)?,
        Opened::open(&args.other, args.other_offset, &args.key)?,
    );
    let (one, other) = (one_file.mapped(), other_file.mapped());
    let mut blocks = Vec::new();
    for block in &one.blocks {
        let Some(twin) = other.blocks.iter().find(|twin| twin.name == block.name) else {
            continue;
        };
        let page_size = block.layout.header().page_size;
        if twin.layout.header().page_size != page_size {
            return Err(Failure::Other(format!(
                "RAM block {:?} has pages of another size in each",
                block.name
            )));
        }
        let runs = changed_pages(
            &BlockReader::new(one_file.file(), block)?,
            &BlockReader::new(other_file.file(), twin)?,
        )?;
        let changed = runs.iter().map(|run| run.len as u64 / page_size).sum();
        let range = |run: &multifd_core::Run| Range {
            offset: run.offset,
            bytes: run.len,
        };
        blocks.push(Block {
            name: block.name.clone(),
            pages: block.layout.pages().max(twin.layout.pages()),
            changed_pages: changed,
            ranges: args.list.then(|| runs.iter().map(range).collect()),
        });
    }
    let lone = |of: &[multifd_qemu::PlacedBlock], not_in: &[multifd_qemu::PlacedBlock]| {
        let lone = of
            .iter()
            .filter(|block| !not_in.iter().any(|other| other.name == block.name));
        lone.map(|block| block.name.clone()).collect::<Vec<_>>()
    };
    conclude(
        args,
        Differences {
            ok: true,
            same: false,
            changed_pages: blocks.iter().map(|block| block.changed_pages).sum(),
            blocks,
            only_in_one: lone(&one.blocks, &other.blocks),
            only_in_other: lone(&other.blocks, &one.blocks),
            devices_differ: one.tail != other.tail,
        },
    )
}

/// Compares two snapshots in stores by the names of their chunks.
fn in_stores(args: &Diff, one: &SnapshotAddress, other: &SnapshotAddress) -> Result<(), Failure> {
    let cache = ChunkCache::new(CACHE);
    let one = args.key.open_snapshot(one, &cache)?;
    let other = args.key.open_snapshot(other, &cache)?;
    let found = differences(&one, &other, |name| !is_layout(name))?;
    let block = |block: BlockDifference| {
        let page = u64::from(block.page_size);
        let range = |range: &std::ops::Range<u64>| Range {
            offset: range.start,
            bytes: (range.end - range.start) as usize,
        };
        let ranges = block.ranges.iter();
        Block {
            pages: block.len / page,
            changed_pages: ranges
                .clone()
                .map(|range| (range.end - range.start) / page)
                .sum(),
            ranges: args.list.then(|| ranges.map(range).collect()),
            name: block.name,
        }
    };
    let blocks: Vec<_> = found.blocks.into_iter().map(block).collect();
    conclude(
        args,
        Differences {
            ok: true,
            same: false,
            changed_pages: blocks.iter().map(|block| block.changed_pages).sum(),
            blocks,
            only_in_one: found.only_in_one,
            only_in_other: found.only_in_other,
            devices_differ: found.streams_differ,
        },
    )
}

/// Prints what was found, and says whether the two are the same.
fn conclude(args: &Diff, mut result: Differences) -> Result<(), Failure> {
    result.same = result.changed_pages == 0
        && result.only_in_one.is_empty()
        && result.only_in_other.is_empty();
    report::print(args.show.json, &result, text(&result).trim_end())?;
    if result.same {
        Ok(())
    } else {
        Err(Failure::Reported)
    }
}

fn text(result: &Differences) -> String {
    let mut out = String::new();
    for block in &result.blocks {
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "{:?}: {} of {} pages differ",
            block.name, block.changed_pages, block.pages
        );
        for Range { offset, bytes } in block.ranges.iter().flatten() {
            let _ = writeln!(out, "  {offset:#x}..{:#x}", offset + *bytes as u64);
        }
    }
    for (names, which) in [
        (&result.only_in_one, "first"),
        (&result.only_in_other, "second"),
    ] {
        for name in names {
            let _ = writeln!(out, "{name:?} is only in the {which}");
        }
    }
    if result.devices_differ {
        out.push_str("the device sections differ\n");
    }
    out
}
