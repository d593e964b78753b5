//! Which pages of a block a file holds. Only parts of the bitmap that have a bit are kept: a file
//! may claim far more memory than it stores.

use crate::{FileError, sys};
use multifd_packet::MappedRamLayout;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Words of the bitmap kept together: 4 KiB of it, or 128 MiB of memory in pages of 4 KiB.
const WORDS: usize = 512;
const BYTES: usize = WORDS * 8;
/// Pages one part tells of.
const PAGES: u64 = WORDS as u64 * 64;
/// Bytes of the bitmap read at a time.
const STEP: usize = 64 * BYTES;

/// The stored pages of one RAM block.
///
/// In the file it is a bitmap: bit `i % 64` of little-endian word `i / 64` says that page `i` is
/// stored. Holes of the file are not read, and take no memory.
#[derive(Debug, Clone, Default)]
pub struct StoredPages {
    /// Parts with at least one bit, by the number of their first page divided by [`PAGES`], in
    /// order.
    parts: Vec<(u64, Box<[u64; WORDS]>)>,
}

impl StoredPages {
    /// Reads a block's bitmap.
    ///
    /// # Errors
    /// [`FileError::Short`] if the file ends within it; [`FileError::At`].
    pub fn read(file: &File, layout: &MappedRamLayout) -> Result<Self, FileError> {
        let (offset, len) = (layout.header().bitmap_offset, layout.bitmap_len());
        let failed = |cause| FileError::At {
            doing: "reading the bitmap,",
            offset,
            len: usize::try_from(len).unwrap_or(usize::MAX),
            cause,
        };
        let end = file.metadata().map_err(failed)?.len();
        let short = || FileError::Short {
            what: "a bitmap",
            offset,
            len,
            end,
        };
        let last = offset
            .checked_add(len)
            .filter(|&needed| needed <= end)
            .ok_or_else(short)?;
        let mut stored = Self::default();
        let mut room = vec![0; STEP];
        let mut at = offset;
        while let Some(data) = sys::next_data(file, at..last).map_err(failed)? {
            // Parts begin at multiples of their size from the bitmap's start.
            at = data.start - (data.start - offset) % BYTES as u64;
            while at < data.end {
                let size = usize::try_from(last - at).unwrap_or(STEP).min(STEP);
                let bytes = room.get_mut(..size).unwrap_or_default();
                file.read_exact_at(bytes, at)
                    .map_err(|cause| match cause.kind() {
                        io::ErrorKind::UnexpectedEof => short(),
                        _ => failed(cause),
                    })?;
                stored.push((at - offset) / BYTES as u64, bytes);
                at += size as u64;
            }
        }
        Ok(stored)
    }

    /// The stored pages that a bitmap's bytes tell of.
    pub fn of_bitmap(bytes: &[u8]) -> Self {
        let mut stored = Self::default();
        stored.push(0, bytes);
        stored
    }

    /// Adds parts from `first` on, whose bytes these are.
    fn push(&mut self, first: u64, bytes: &[u8]) {
        for (number, part) in (first..).zip(bytes.chunks(BYTES)) {
            if part.iter().all(|&byte| byte == 0) {
                continue;
            }
            let mut words = Box::new([0; WORDS]);
            for (word, bytes) in words.iter_mut().zip(part.chunks(8)) {
                let mut whole = [0; 8];
                whole
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(to, from)| *to = *from);
                *word = u64::from_le_bytes(whole);
            }
            self.parts.push((number, words));
        }
    }

    /// How many pages are stored.
    pub fn count(&self) -> u64 {
        self.count_in(0..u64::MAX)
    }

    /// How many pages of a range are stored.
    pub fn count_in(&self, pages: Range<u64>) -> u64 {
        self.runs(pages).map(|run| run.end - run.start).sum()
    }

    /// Whether a page is stored.
    pub fn contains(&self, page: u64) -> bool {
        self.any_in(page..page.saturating_add(1))
    }

    /// Whether any page of a range is stored.
    pub fn any_in(&self, pages: Range<u64>) -> bool {
        self.runs(pages).next().is_some()
    }

    /// The last page that is stored.
    pub fn last(&self) -> Option<u64> {
        let (number, words) = self.parts.last()?;
        let (at, word) = words
            .iter()
            .enumerate()
            .rev()
            .find(|(_, word)| **word != 0)?;
        Some(number * PAGES + at as u64 * 64 + u64::from(63 - word.leading_zeros()))
    }

    /// The stored pages of a range, as runs of adjacent ones in order.
    pub fn runs(&self, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut at = pages.start;
        let mut part = self
            .parts
            .partition_point(|(number, _)| (number + 1) * PAGES <= at);
        std::iter::from_fn(move || {
            let start = self.seek(&mut part, at, pages.end, true)?;
            let end = self
                .seek(&mut part, start, pages.end, false)
                .unwrap_or(pages.end);
            at = end;
            Some(start..end)
        })
    }

    /// The first page from `at` on, before `end`, that is stored, or that is not. `part` is the
    /// index of the part that `at` lies in, or of the next one.
    fn seek(&self, part: &mut usize, mut at: u64, end: u64, stored: bool) -> Option<u64> {
        while at < end {
            let Some((number, words)) = self.parts.get(*part) else {
                return (!stored).then_some(at);
            };
            let (first, after) = (number * PAGES, (number + 1) * PAGES);
            if at < first {
                if !stored {
                    return Some(at);
                }
                at = first;
                continue;
            }
            if at >= after {
                *part += 1;
                continue;
            }
            let (word, bit) = ((at - first) / 64, (at - first) % 64);
            let bits = words.get(word as usize).copied().unwrap_or(0);
            let wanted = if stored { bits } else { !bits } >> bit;
            if wanted != 0 {
                return Some(at + u64::from(wanted.trailing_zeros())).filter(|&page| page < end);
            }
            at += 64 - bit;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_packet::Bitmap;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_tells_what_the_bitmap_does(
            pages in proptest::collection::btree_set(prop_oneof![0u64..300, 32_700u64..32_900, 100_000u64..100_100], 0..200),
            ranges in proptest::collection::vec((0u64..110_000, 0u64..70_000), 1..20),
        ) {
            let mut bytes = vec![0; 110_000 / 8];
            for &page in &pages {
                prop_assert!(Bitmap::set(&mut bytes, page));
            }
            let stored = StoredPages::of_bitmap(&bytes);
            prop_assert_eq!(stored.count(), pages.len() as u64);
            prop_assert_eq!(stored.last(), pages.last().copied());
            for (start, len) in ranges {
                let range = start..start + len;
                let expected: BTreeSet<u64> = pages.range(range.clone()).copied().collect();
                let runs: Vec<_> = stored.runs(range.clone()).collect();
                prop_assert!(runs.iter().all(|run| run.start < run.end));
                prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
                prop_assert_eq!(runs.into_iter().flatten().collect::<BTreeSet<_>>(), expected);
                prop_assert_eq!(stored.contains(start), pages.contains(&start));
            }
        }
    }

    #[test]
    fn holes_cost_nothing() {
        let file = tempfile::tempfile().unwrap();
        let layout = MappedRamLayout::place(0, 8 << 40, 4096).unwrap();
        let header = layout.header();
        file.set_len(layout.end()).unwrap();
        // One page in the middle, and the last one.
        let last = layout.pages() - 1;
        for page in [1 << 30, last] {
            let at = header.bitmap_offset + page / 8;
            file.write_all_at(&[1 << (page % 8)], at).unwrap();
        }
        let stored = StoredPages::read(&file, &layout).unwrap();
        assert_eq!(
            stored.runs(0..u64::MAX).collect::<Vec<_>>(),
            [1 << 30..(1 << 30) + 1, last..last + 1]
        );
        assert!(stored.parts.len() == 2 && stored.parts.capacity() < 16);
    }
}
