//! `multifd verify`: is a mapped-ram file whole, and does it hold what it was written with?

use crate::args::Verify;
use crate::failure::Failure;
use crate::report;
use multifd_qemu::file::SnapshotFile;
use serde::Serialize;

#[derive(Serialize)]
struct Verified {
    ok: bool,
    file: String,
    blocks: usize,
    stored_pages: u64,
    /// Whether there were checksums to check against.
    digest: bool,
    problems: Vec<String>,
}

pub(crate) fn run(args: &Verify) -> Result<(), Failure> {
    let path = &args.image.file;
    let opened = SnapshotFile::open(path, args.image.offset)?;
    let found = opened.verify();
    let mut problems = found.problems;
    if !found.digest && args.require_digest {
        problems.push("there is no companion with checksums".into());
    }
    let result = Verified {
        ok: problems.is_empty(),
        file: path.display().to_string(),
        blocks: opened.mapped().blocks.len(),
        stored_pages: found.stored_pages,
        digest: found.digest,
        problems,
    };
    let against = if found.digest {
        "every page is as its checksum says"
    } else {
        "no checksums to check pages against"
    };
    let text = if result.ok {
        format!("{}: whole; {against}", result.file)
    } else {
        format!("{}: {}", result.file, result.problems.join("\n"))
    };
    report::print(args.show.json, &result, &text)?;
    if result.ok {
        Ok(())
    } else {
        Err(Failure::Reported)
    }
}
