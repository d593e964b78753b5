//! The process of a QEMU, as the system shows it: what it maps, and which pages are its own.

use super::super::client::Qmp;
use super::stale::push;
use crate::PlacedBlock;
use crate::qmp::QmpError;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// Bits of an entry of `/proc/PID/pagemap`: the page is present, swapped out, the file's.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
/// Entries read at a time.
const ENTRIES: usize = 32 << 10;

/// A QEMU's folder in `/proc`.
pub(super) struct Process {
    folder: PathBuf,
    page: u64,
}

/// A mapping of a file.
struct Mapping {
    /// As the system writes it, which is also a name in `/proc/PID/map_files`.
    name: String,
    device: u64,
    start: u64,
    end: u64,
    offset: u64,
    private: bool,
    /// Bytes that are the process's own.
    own: u64,
}

impl Process {
    /// The process that runs the QEMU at `qmp`. It must be on this machine, and ours to look at.
    pub(super) fn of(qmp: &mut Qmp) -> Result<Self, QmpError> {
        let cpus = qmp.execute("query-cpus-fast", &json!({}))?;
        let thread = cpus
            .as_array()
            .and_then(|cpus| cpus.first())
            .and_then(|cpu| cpu.get("thread-id"))
            .and_then(Value::as_u64);
        let thread = thread.ok_or_else(|| cannot("it does not say which threads it has"))?;
        Ok(Self {
            folder: PathBuf::from(format!("/proc/{thread}")),
            page: rustix::param::page_size() as u64,
        })
    }

    fn read(&self, name: &str) -> Result<String, QmpError> {
        std::fs::read_to_string(self.folder.join(name))
            .map_err(|cause| cannot(&format!("{}: {cause}", self.folder.join(name).display())))
    }

    /// Refuses a process that locks its memory: all of the snapshot would be copied into it.
    pub(super) fn check_locked(&self) -> Result<(), QmpError> {
        let status = self.read("status")?;
        let locked = status
            .lines()
            .find_map(|line| line.strip_prefix("VmLck:")?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok());
        if locked.unwrap_or(0) == 0 {
            return Ok(());
        }
        Err(QmpError::Refused(
            "this QEMU locks its memory, which copies all of the snapshot into it: leave -overcommit mem-lock=on out"
                .into(),
        ))
    }

    /// The mappings of a file.
    fn mappings(&self, file: &File) -> Result<Vec<Mapping>, QmpError> {
        let data = file
            .metadata()
            .map_err(|cause| cannot(&cause.to_string()))?;
        let text = self.read("smaps")?;
        let mut all = parse(&text, data.ino());
        // Some file systems (btrfs, overlayfs) have another device here than files say.
        all.retain(|mapping| {
            let link = self.folder.join("map_files").join(&mapping.name);
            mapping.device == data.dev()
                || link
                    .metadata()
                    .is_ok_and(|found| (found.dev(), found.ino()) == (data.dev(), data.ino()))
        });
        Ok(all)
    }

    /// The ranges (bytes) of a block's pages that are the process's own: something has written to
    /// them. Refuses a process that does not map the block privately from this very file.
    pub(super) fn written_pages(
        &self,
        file: &File,
        block: &PlacedBlock,
    ) -> Result<Vec<Range<u64>>, QmpError> {
        let layout = &block.layout;
        let (offset, len) = (layout.header().pages_offset, layout.used_length());
        let all = self.mappings(file)?;
        let covers = |mapping: &&Mapping| {
            mapping.offset <= offset
                && offset + len <= mapping.offset + (mapping.end - mapping.start)
        };
        let Some(mapping) = all.iter().find(covers) else {
            return Err(QmpError::Refused(format!(
                "this QEMU does not map RAM block {:?} from the snapshot's file as it is now: the file was replaced after \
                 QEMU had been started, or QEMU maps another one of that name",
                block.name
            )));
        };
        if !mapping.private {
            return Err(QmpError::Refused(format!(
                "this QEMU shares RAM block {:?} with the snapshot's file, which the guest would write to: share=off is needed",
                block.name
            )));
        }
        if mapping.own == 0 {
            return Ok(Vec::new());
        }
        let pagemap = File::open(self.folder.join("pagemap"));
        let pagemap = pagemap.map_err(|cause| cannot(&cause.to_string()))?;
        let start = mapping.start + (offset - mapping.offset);
        let own = own_pages(&pagemap, (start, len), self.page);
        let own = own.map_err(|cause| cannot(&cause.to_string()))?;
        // The guest's pages may be larger than the system's.
        let guest = layout.header().page_size;
        let mut pages = Vec::new();
        for range in own {
            let end = range.end.next_multiple_of(guest).min(len);
            push(&mut pages, range.start / guest * guest..end);
        }
        Ok(pages)
    }
}

fn cannot(why: &str) -> QmpError {
    QmpError::Refused(format!(
        "it cannot be seen whether QEMU has written to memory that is to be the snapshot's ({why}): QEMU has to run on this \
         machine, as the same user or under root's eyes"
    ))
}

/// Those pages of a range (address, bytes) that are the process's own, as ranges of bytes in it.
fn own_pages(pagemap: &File, (start, len): (u64, u64), page: u64) -> io::Result<Vec<Range<u64>>> {
    let mut own = Vec::new();
    let mut room = vec![0; ENTRIES * 8];
    let (first, count) = (start / page, len.div_ceil(page));
    let mut at = 0;
    while at < count {
        let n = (count - at).min(ENTRIES as u64);
        let bytes = room
            .get_mut(..usize::try_from(n * 8).unwrap_or(0))
            .unwrap_or_default();
        pagemap.read_exact_at(bytes, (first + at) * 8)?;
        let (entries, _) = bytes.as_chunks::<8>();
        for (index, entry) in (at..).zip(entries) {
            let entry = u64::from_ne_bytes(*entry);
            if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                push(&mut own, index * page..(index + 1) * page);
            }
        }
        at += n;
    }
    Ok(own)
}

/// The mappings of files with an inode number in the text of `/proc/PID/smaps`.
fn parse(smaps: &str, inode: u64) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    let mut current = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
            let hex = |text: &str| u64::from_str_radix(text, 16).ok();
            let mapping = (|| {
                let (start, end) = (hex(start)?, hex(end)?);
                let access = words.next()?;
                let offset = hex(words.next()?)?;
                let (major, minor) = words.next()?.split_once(':')?;
                let device = rustix::fs::makedev(
                    u32::try_from(hex(major)?).ok()?,
                    u32::try_from(hex(minor)?).ok()?,
                );
                let is = words.next()?.parse::<u64>().ok()? == inode;
                is.then(|| Mapping {
                    name: first.into(),
                    device,
                    start,
                    end,
                    offset,
                    private: access.ends_with('p'),
                    own: 0,
                })
            })();
            current = mapping.is_some();
            found.extend(mapping);
        } else if current
            && ["Anonymous:", "Swap:"].contains(&first)
            && let Some(kib) = words.next().and_then(|kib| kib.parse::<u64>().ok())
            && let Some(mapping) = found.last_mut()
        {
            mapping.own += kib << 10;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "7f0000000000-7f0000400000 rw-p 00100000 fe:01 77    /srv/vm.mapped
Size:               4096 kB
Private_Dirty:         8 kB
Anonymous:             8 kB
Swap:                  4 kB
7f0000400000-7f0000500000 rw-p 00000000 00:00 0
Anonymous:            64 kB
7f0000500000-7f0000600000 rw-s 00500000 fe:01 77    /srv/vm.mapped (deleted)
";

    #[test]
    fn mappings_are_read_off_the_systems_table() {
        let found = parse(SMAPS, 77);
        let seen: Vec<_> = found
            .iter()
            .map(|m| (m.start, m.end - m.start, m.offset, m.private, m.own))
            .collect();
        assert_eq!(
            seen,
            [
                (0x7f00_0000_0000, 4 << 20, 1 << 20, true, 12 << 10),
                (0x7f00_0050_0000, 1 << 20, 5 << 20, false, 0)
            ]
        );
        let device = rustix::fs::makedev(0xfe, 1);
        assert!(found.iter().all(|mapping| mapping.device == device));
        assert!(parse(SMAPS, 78).is_empty());
    }
}
