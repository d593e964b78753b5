//! A guest of 4 GiB that goes on from a snapshot: from a store's mount, and by other ways.

use super::{Stage, Way};
use crate::ours::Outcome;
use crate::program::command::run;
use crate::program::machines::{load, text};
use crate::program::starts::{bare, first_word, machine, options, ours, snapshot, waits};
use multifd_tests::stores::Served;
use std::time::Instant;

const GIB: u64 = 4;

pub(super) fn measure(stage: &mut Stage<'_>) -> Outcome<()> {
    let case = format!("first word, {GIB} GiB");
    if !stage.wants(&case) {
        return Ok(());
    }
    let file = stage.disk.join("start.mapped");
    snapshot(&stage.memory, GIB, &file)?;
    let store = stage.disk.join("store");
    let disk = stage.disk.clone();
    let _served = Served(&disk);
    let from = format!("store:{}#vm", store.display());
    run(&["store", "import", "--json", text(&file)?, &from])?;
    let ways: Vec<Way<'_>> = vec![
        (
            "QEMU's own load of a file",
            Box::new(|| {
                let mut qemu = waits(GIB);
                let begun = Instant::now();
                load(&mut qemu, &file);
                Ok((first_word(&qemu, begun), None))
            }),
        ),
        (
            "multifd restore of a file",
            Box::new(|| Ok((ours(&waits(GIB), &file, &[])?.seconds, None))),
        ),
        (
            "multifd restore --instant of a file",
            Box::new(|| {
                let qemu = bare(&machine(GIB), &options(&file)?);
                Ok((ours(&qemu, &file, &["--instant"])?.seconds, None))
            }),
        ),
        (
            "restore --instant from the store",
            Box::new(|| {
                let qemu = bare(&machine(GIB), &options(from.as_ref())?);
                Ok((ours(&qemu, from.as_ref(), &["--instant"])?.seconds, None))
            }),
        ),
    ];
    stage.in_turn(&case, ways)?;
    std::fs::remove_dir_all(&store)?;
    let _ = std::fs::remove_file(file.with_extension("mapped.crc"));
    Ok(std::fs::remove_file(&file)?)
}
