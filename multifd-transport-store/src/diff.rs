//! What differs between two snapshots. Chunks of the same name are equal, and are not read.

use crate::format::manifest::ObjectKind;
use crate::{Snapshot, StoreError};
use std::collections::HashMap;
use std::ops::Range;

/// How a RAM block differs between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockDifference {
    /// The block.
    pub name: String,
    /// Bytes of a page.
    pub page_size: u32,
    /// Bytes of the longer of the two.
    pub len: u64,
    /// Ranges of pages that differ, in bytes, in order.
    pub ranges: Vec<Range<u64>>,
}

/// Differences between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Differences {
    /// Blocks that both have.
    pub blocks: Vec<BlockDifference>,
    /// Blocks that only the first has.
    pub only_in_one: Vec<String>,
    /// Blocks that only the second has.
    pub only_in_other: Vec<String>,
    /// Whether something else than RAM differs, of what counts.
    pub streams_differ: bool,
}

fn blocks(snapshot: &Snapshot, kind: ObjectKind) -> HashMap<&str, usize> {
    let objects = snapshot.manifest().head.objects.iter().enumerate();
    objects
        .filter(|(_, object)| object.kind == kind)
        .map(|(number, object)| (object.name.as_str(), number))
        .collect()
}

/// Compares two snapshots, of one store or of two: their RAM page by page, and of other objects
/// those for whose names `counts` is true.
///
/// # Errors
/// [`StoreError`], as when a chunk that is only in one of them cannot be read.
pub fn differences(
    one: &Snapshot,
    other: &Snapshot,
    counts: impl Fn(&str) -> bool,
) -> Result<Differences, StoreError> {
    let mut found = Differences::default();
    let (left, right) = (
        blocks(one, ObjectKind::Block),
        blocks(other, ObjectKind::Block),
    );
    for (number, object) in one.manifest().head.objects.iter().enumerate() {
        if object.kind != ObjectKind::Block {
            continue;
        }
        match right.get(object.name.as_str()) {
            Some(&twin) => found.blocks.push(block(one, number, other, twin)?),
            None => found.only_in_one.push(object.name.clone()),
        }
    }
    let names = other.manifest().head.objects.iter();
    found.only_in_other = names
        .filter(|object| object.kind == ObjectKind::Block)
        .filter(|object| !left.contains_key(object.name.as_str()))
        .map(|object| object.name.clone())
        .collect();
    let (left, right) = (
        blocks(one, ObjectKind::Stream),
        blocks(other, ObjectKind::Stream),
    );
    for (name, &number) in left.iter().filter(|(name, _)| counts(name)) {
        found.streams_differ |= match right.get(name) {
            Some(&twin) => !block(one, number, other, twin)?.ranges.is_empty(),
            None => true,
        };
    }
    let mut rest = right.keys().filter(|name| !left.contains_key(*name));
    found.streams_differ |= rest.any(|name| counts(name));
    Ok(found)
}

fn block(
    one: &Snapshot,
    number: usize,
    other: &Snapshot,
    twin: usize,
) -> Result<BlockDifference, StoreError> {
    let object = &one.manifest().head.objects[number];
    let lens = (object.len, other.manifest().head.objects[twin].len);
    let page = u64::from(object.page_size.max(1));
    let page = if object.page_size == 0 { 4096 } else { page };
    let sizes = (
        one.manifest().head.chunk_size,
        other.manifest().head.chunk_size,
    );
    // Names can be compared within a store, and between two without keys.
    let (from, to) = (one.store(), other.store());
    let alike = sizes.0 == sizes.1 && from.names_alike(to);
    let step = u64::from(sizes.0.max(sizes.1)).max(page);
    let mut difference = BlockDifference {
        name: object.name.clone(),
        page_size: object.page_size,
        len: lens.0.max(lens.1),
        ranges: Vec::new(),
    };
    let common = lens.0.min(lens.1);
    let (mut left, mut right) = (vec![0; step as usize], vec![0; step as usize]);
    let mut at = 0;
    while at < common {
        let len = step.min(common - at);
        let entry = |snapshot: &Snapshot, object| {
            let entry = snapshot.manifest().entry(object, at / u64::from(sizes.0));
            entry.map(|chunk| snapshot.manifest().chunks()[chunk].name)
        };
        let whole = alike && step == u64::from(sizes.0);
        if !(whole && entry(one, number) == entry(other, twin)) {
            let (left, right) = (&mut left[..len as usize], &mut right[..len as usize]);
            one.read_at(number, at, left)?;
            other.read_at(twin, at, right)?;
            let pages = left.chunks(page as usize).zip(right.chunks(page as usize));
            for (index, _) in pages.enumerate().filter(|(_, (left, right))| left != right) {
                let start = at + index as u64 * page;
                add(&mut difference.ranges, start..(start + page).min(common));
            }
        }
        at += len;
    }
    if common < difference.len {
        add(&mut difference.ranges, common..difference.len);
    }
    Ok(difference)
}

fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
