//! Mapped-ram files that lie: each is a clear error of every command that reads it, in bounded
//! memory and time.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_qemu::{Limits, MappedFile};
use multifd_tests::golden::Golden;
use multifd_tests::program::path;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// One lie: bytes written over a good file at a place, or the file cut there.
struct Lie {
    name: String,
    at: u64,
    bytes: Option<Vec<u8>>,
    expected: &'static str,
}

/// Where the fields of the golden file lie.
struct Map {
    len: u64,
    /// The first block's entry: its length byte.
    first: u64,
    /// The second block's.
    second: u64,
    bitmap: u64,
    /// The end of the block list: the word that ends the section.
    end: u64,
    tail: u64,
}

fn golden() -> (Vec<u8>, Map) {
    let bytes = Golden::load("mapped-2ch").files["snapshot.mapped"].clone();
    let file = MappedFile::read(std::io::Cursor::new(&bytes), 0, &Limits::default(), true).unwrap();
    let (one, last) = (&file.blocks[0], file.blocks.last().unwrap());
    let entry = |bitmap: u64, name: &str| bitmap - 28 - 8 - name.len() as u64 - 1;
    let map = Map {
        len: bytes.len() as u64,
        first: entry(one.layout.header().bitmap_offset, &one.name),
        second: one.layout.end(),
        bitmap: one.layout.header().bitmap_offset,
        end: last.layout.end(),
        tail: (bytes.len() - file.tail.bytes().len()) as u64,
    };
    (bytes, map)
}

#[allow(clippy::too_many_lines)] // A table.
fn lies(map: &Map) -> Vec<Lie> {
    let mut lies = Vec::new();
    let mut lie = |name: &str, at: u64, bytes: &[u8], expected| {
        lies.push(Lie {
            name: name.into(),
            at,
            bytes: Some(bytes.to_vec()),
            expected,
        });
    };
    let max = u64::MAX.to_be_bytes();
    // "pc.ram": a byte of length, six of name, eight of used length, then the mapped-ram header.
    let (name, used, header) = (map.first + 1, map.first + 7, map.first + 15);
    lie("magic", 0, b"ELF!", "the magic number is");
    lie("version", 4, &[0, 0, 0, 4], "the version is 0x4");
    lie(
        "first element",
        8,
        &[0x55],
        "the capabilities mapped-ram and multifd",
    );
    lie(
        "machine name's length",
        9,
        &[0xff; 4],
        "the machine name's length is",
    );
    lie("machine name", 13, &[0xff], "the machine name is");
    lie(
        "subsection's name",
        31,
        b"xxxx",
        "the configuration subsection",
    );
    lie(
        "section's name",
        map.first - 19,
        b"rom",
        "the iterable section \"rom\"",
    );
    lie(
        "section's version",
        map.first - 9,
        &[9],
        "the RAM section's version is",
    );
    lie(
        "total of RAM",
        map.first - 8,
        &max[..6],
        "the guest's RAM is",
    );
    lie(
        "total too small",
        map.first - 8,
        &0x1000u64.to_be_bytes()[..6],
        "a RAM block's length is",
    );
    lie("no name", map.first, &[0], "a RAM block's name is \"\"");
    lie(
        "name with control characters",
        name,
        b"\x1b[2J..",
        "without control characters",
    );
    lie("name that is no text", name, &[0xc3, 0x28], "UTF-8");
    lie("name with NUL", name, &[0], "without control characters");
    lie(
        "used length near 2^64",
        used,
        &max,
        "a RAM block's length is",
    );
    lie(
        "used length zero",
        used,
        &[0; 8],
        "a RAM block's length is 0x0",
    );
    lie(
        "used length not of pages",
        used + 7,
        &[1],
        "a RAM block's length is",
    );
    lie(
        "mapped-ram version",
        header,
        &[0, 0, 0, 9],
        "version is 0x9, expected 0x1",
    );
    lie("page size zero", header + 4, &[0; 8], "page size 0 is not");
    lie(
        "page size near 2^64",
        header + 4,
        &max,
        "is not a power of two",
    );
    lie(
        "page size odd",
        header + 4,
        &0x1001u64.to_be_bytes(),
        "page size 4097 is not",
    );
    lie(
        "page size other than the machine's",
        header + 4,
        &0x2000u64.to_be_bytes(),
        "page_size is 0x2000, expected 0x1000",
    );
    lie("bitmap near 2^64", header + 12, &max, "bitmap_offset");
    lie(
        "bitmap over the header",
        header + 12,
        &8u64.to_be_bytes(),
        "bitmap_offset is",
    );
    lie(
        "bitmap over the pages",
        header + 12,
        &0x000f_ffffu64.to_be_bytes(),
        "bitmap_offset is",
    );
    lie(
        "pages near 2^64",
        header + 20,
        &0xffff_ffff_ffff_f000u64.to_be_bytes(),
        "64-bit file",
    );
    lie(
        "pages not aligned",
        header + 20,
        &0x0010_0001u64.to_be_bytes(),
        "is not a multiple of",
    );
    lie(
        "pages over the bitmap",
        header + 20,
        &0x1000u64.to_be_bytes()[..7],
        "",
    );
    lie(
        "pages beyond the end",
        header + 20,
        &(1u64 << 40).to_be_bytes(),
        "ends at byte",
    );
    lie("a block twice", map.second, b"\x06pc.ram", "");
    lie(
        "a record that has no place",
        map.end + 6,
        &[2, 0],
        "pages have their places",
    );
    lie(
        "a section's footer",
        map.end + 8,
        &[0],
        "a section's footer is",
    );
    lie(
        "a section's id",
        map.end + 12,
        &[9],
        "a section footer's id is",
    );
    lie(
        "what comes next",
        map.end + 13,
        &[0x55],
        "what comes next is",
    );
    lie("the end", map.len - 1, &[0], "the device sections");
    let mut cut = |name: &str, at: u64, expected| {
        lies.push(Lie {
            name: format!("cut: {name}"),
            at,
            bytes: None,
            expected,
        });
    };
    cut("nothing", 0, "ends at byte 0");
    cut("header", 6, "within the version");
    cut("machine name", 20, "within the machine name");
    cut("capabilities", 66, "within a capability's name");
    cut("block list", map.first + 3, "within a RAM block's name");
    cut(
        "mapped-ram header",
        header + 11,
        "within a mapped-ram header",
    );
    cut("bitmap", map.bitmap + 5, "ends at byte");
    cut("pages", map.second - 4096, "ends at byte");
    cut("second block", map.second + 4, "within a RAM block's");
    cut(
        "section's end",
        map.end + 4,
        "within a word of the RAM section",
    );
    cut("footer", map.end + 10, "within a section footer's id");
    cut("end section", map.tail - 3, "within a section footer's id");
    cut(
        "device sections",
        map.tail + 1000,
        "within the device sections",
    );
    cut("description", map.len - 1, "within the device sections");
    lies
}

/// Runs the program in 256 MiB of address space (on top of a few for its threads) and 20 seconds of
/// processor time.
fn bounded(args: &[&str]) -> Output {
    let script = "ulimit -v 400000; ulimit -t 20; exec \"$@\"";
    Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(path())
        .args(args)
        .output()
        .unwrap()
}

fn refused(lie: &str, args: &[&str], expected: &str) {
    let output = bounded(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{lie}: {args:?}: {said}");
    assert!(
        said.contains(expected) && said.len() > 20,
        "{lie}: {args:?}: {said}"
    );
    assert!(!said.contains('\x1b'), "{lie}: {said:?}");
}

struct Damaged {
    _folder: tempfile::TempDir,
    path: PathBuf,
    good: Vec<u8>,
}

impl Damaged {
    fn new(good: Vec<u8>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.mapped");
        std::fs::write(&path, &good).unwrap();
        Self {
            _folder: folder,
            path,
            good,
        }
    }

    /// Puts the lie into the file, and takes it out again after `look`.
    fn with(&self, at: u64, bytes: Option<&[u8]>, look: impl FnOnce(&Path)) {
        let file = File::options().write(true).open(&self.path).unwrap();
        let start = at as usize;
        let end = if let Some(bytes) = bytes {
            file.write_all_at(bytes, at).unwrap();
            start + bytes.len()
        } else {
            file.set_len(at).unwrap();
            self.good.len()
        };
        look(&self.path);
        file.write_all_at(&self.good[start..end], at).unwrap();
    }
}

#[test]
fn every_lie_is_a_clear_error() {
    let (good, map) = golden();
    let damaged = Damaged::new(good);
    let out = damaged.path.with_file_name("out");
    let lies = lies(&map);
    for lie in &lies {
        damaged.with(lie.at, lie.bytes.as_deref(), |path| {
            let file = path.to_str().unwrap();
            refused(&lie.name, &["verify", file], lie.expected);
            refused(
                &lie.name,
                &[
                    "extract",
                    file,
                    "--block",
                    "pc.ram",
                    "--out",
                    out.to_str().unwrap(),
                ],
                "",
            );
            assert!(!out.exists(), "{}", lie.name);
            refused(
                &lie.name,
                &["send", file, "--to", "unix:/nonexistent/socket"],
                "",
            );
        });
    }
    assert!(lies.len() > 45);
    let output = bounded(&["verify", damaged.path.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn a_bitmap_that_lies_is_found_out() {
    let (good, map) = golden();
    let file = MappedFile::read(std::io::Cursor::new(&good), 0, &Limits::default(), true).unwrap();
    // The first block whose pages do not fill its bitmap: bits of pages that do not exist.
    let short = file
        .blocks
        .iter()
        .find(|block| !block.layout.pages().is_multiple_of(64))
        .unwrap();
    let last_byte = short.layout.header().bitmap_offset + short.layout.bitmap_len() - 1;
    let damaged = Damaged::new(good);
    damaged.with(last_byte, Some(&[0xff]), |path| {
        refused(
            "bits beyond the end",
            &["verify", path.to_str().unwrap()],
            "pages that do not exist",
        );
    });
    // Whether a page is stored or zero only checksums can tell; with them, it is told.
    let snapshot = multifd_tests::program::Recv::start(
        "tcp:127.0.0.1:0",
        &damaged.path.with_file_name("ours"),
        &[],
    );
    let sent = multifd_tests::program::run(&[
        "send",
        damaged.path.to_str().unwrap(),
        "--to",
        &snapshot.address,
    ]);
    assert!(
        sent.status.success(),
        "{}",
        String::from_utf8_lossy(&sent.stderr)
    );
    snapshot.succeed();
    let ours = damaged.path.with_file_name("ours");
    let file = ours.to_str().unwrap().to_owned();
    assert!(
        bounded(&["verify", &file, "--require-digest"])
            .status
            .success()
    );
    let good = std::fs::read(&ours).unwrap();
    let stored = (map.bitmap as usize..good.len())
        .find(|&at| good[at] != 0)
        .unwrap();
    let target = File::options().write(true).open(&ours).unwrap();
    target
        .write_all_at(&[good[stored] & (good[stored] - 1)], stored as u64)
        .unwrap();
    refused(
        "a page that is said to be zero",
        &["verify", &file],
        "differs from its checksum",
    );
    target.write_all_at(&[good[stored]], stored as u64).unwrap();
    assert!(bounded(&["verify", &file]).status.success());
    // A byte of a page, of the device sections, of the companion.
    let page = good.iter().rposition(|&byte| byte == b'{').unwrap() - 200_000;
    for (at, expected) in [(page, ""), (good.len() - 150_000, "")] {
        let at = good[..at].iter().rposition(|&byte| byte != 0).unwrap();
        target.write_all_at(&[good[at] ^ 1], at as u64).unwrap();
        refused("a changed byte", &["verify", &file], expected);
        target.write_all_at(&[good[at]], at as u64).unwrap();
    }
    let companion = format!("{file}.crc");
    let mut sums = std::fs::read(&companion).unwrap();
    sums[60] ^= 1;
    std::fs::write(&companion, sums).unwrap();
    refused(
        "a damaged companion",
        &["verify", &file],
        "its own checksum is wrong",
    );
}
