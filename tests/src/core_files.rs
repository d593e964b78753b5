//! ELF cores as tests compare them: what is at which guest physical address, and the notes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A piece of memory in a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    at: u64,
}

/// A core, 32-bit or 64-bit, little-endian.
#[derive(Debug)]
pub struct Core {
    file: File,
    /// Its memory, in the order of the file.
    pub loads: Vec<Load>,
    /// Owner and contents of its notes.
    pub notes: Vec<(String, Vec<u8>)>,
}

impl Core {
    /// Reads a core's headers and notes.
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let bytes = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        let number = |at: u64, len: usize| {
            bytes(at, len)
                .iter()
                .rev()
                .fold(0u64, |n, &b| n << 8 | u64::from(b))
        };
        let large = bytes(4, 1)[0] == 2;
        let (first, size, count) = if large {
            (number(32, 8), 56, number(56, 2))
        } else {
            (number(28, 4), 32, number(44, 2))
        };
        let mut core = Self {
            file: file.try_clone().unwrap(),
            loads: Vec::new(),
            notes: Vec::new(),
        };
        for header in (0..count).map(|n| first + n * size) {
            let (at, address, len) = if large {
                (
                    number(header + 8, 8),
                    number(header + 24, 8),
                    number(header + 32, 8),
                )
            } else {
                (
                    number(header + 4, 4),
                    number(header + 12, 4),
                    number(header + 16, 4),
                )
            };
            match number(header, 4) {
                1 => core.loads.push(Load { address, len, at }),
                4 => {
                    let (mut next, end) = (at, at + len);
                    while next < end {
                        let (name, size) = (number(next, 4), number(next + 4, 4));
                        let contents = next + 12 + name.next_multiple_of(4);
                        let owner = bytes(next + 12, name as usize - 1);
                        let owner = String::from_utf8(owner).unwrap();
                        core.notes.push((owner, bytes(contents, size as usize)));
                        next = contents + size.next_multiple_of(4);
                    }
                }
                other => panic!("a program header of type {other}"),
            }
        }
        core
    }

    /// The notes of one owner.
    pub fn notes_of(&self, owner: &str) -> Vec<&[u8]> {
        let notes = self.notes.iter().filter(|(of, _)| of == owner);
        notes.map(|(_, contents)| contents.as_slice()).collect()
    }

    /// Addresses and lengths of all memory.
    pub fn map(&self) -> Vec<(u64, u64)> {
        self.loads
            .iter()
            .map(|load| (load.address, load.len))
            .collect()
    }

    /// The bytes at an address; all of them must lie in one piece.
    pub fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let load = self.loads.iter().find(|load| {
            load.address <= address && address + out.len() as u64 <= load.address + load.len
        });
        let Some(load) = load else { return false };
        self.file
            .read_exact_at(out, load.at + (address - load.address))
            .unwrap();
        true
    }

    /// Every byte of this core must be the other's at the same address.
    pub fn agrees_with(&self, other: &Self, what: &str) {
        const PIECE: u64 = 1 << 20;
        let (mut mine, mut theirs) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
        for load in &self.loads {
            let mut at = load.address;
            while at < load.address + load.len {
                // Pieces do not cross the multiples of 16 KiB at which the other may begin a new
                // one.
                let left = load.address + load.len - at;
                let step = if other.has_whole(at, left.min(PIECE)) {
                    PIECE
                } else {
                    0x4000
                };
                let len = left.min(step) as usize;
                assert!(self.read(at, &mut mine[..len]));
                assert!(
                    other.read(at, &mut theirs[..len]),
                    "{what}: {at:#x} is not in the other core"
                );
                assert!(
                    mine[..len] == theirs[..len],
                    "{what}: the cores differ within {at:#x}+{len:#x}"
                );
                at += len as u64;
            }
        }
    }

    /// Whether all of a range lies in one piece.
    fn has_whole(&self, at: u64, len: u64) -> bool {
        let mut loads = self.loads.iter();
        loads.any(|load| load.address <= at && at + len <= load.address + load.len)
    }
}
