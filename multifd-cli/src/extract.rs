//! `multifd extract`: one RAM block out of a mapped-ram file.

use crate::args::Extract;
use crate::failure::Failure;
use crate::{report, signals, snapshot_file};
use multifd_transport_file::{AtomicFile, extract};
use serde::Serialize;

#[derive(Serialize)]
struct Extracted<'a> {
    ok: bool,
    block: &'a str,
    bytes: u64,
    stored_bytes: u64,
    file: String,
}

pub(crate) fn run(args: &Extract) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    snapshot_file::check_target(&args.out, args.force)?;
    let (file, mapped) = snapshot_file::inspect(&args.file)?;
    let block = mapped.blocks.iter().find(|block| block.name == args.block);
    let block = block.ok_or_else(|| {
        let names: Vec<_> = mapped.blocks.iter().map(|block| block.name.as_str()).collect();
        Failure::NoBlock {
            path: args.file.clone(),
            block: args.block.clone(),
            known: names.join(", "),
        }
    })?;
    let out = AtomicFile::create(&args.out)?;
    let stored_bytes = extract(&file, &snapshot_file::placed(block), out.file())?;
    if let Some(cancelled) = cancel.error() {
        return Err(cancelled.into());
    }
    out.commit()?;
    let result = Extracted {
        ok: true,
        block: &block.name,
        bytes: block.layout.used_length(),
        stored_bytes,
        file: args.out.display().to_string(),
    };
    let text = format!(
        "{}: {} bytes of RAM block {}",
        result.file, result.bytes, result.block
    );
    report::print(args.show.json, &result, &text);
    Ok(())
}
