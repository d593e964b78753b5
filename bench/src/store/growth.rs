//! Stores with 1, 10 and 100 snapshots.

use super::Stage;
use crate::image::{self, Numbers};
use crate::ours::Outcome;
use crate::program::command::run;
use crate::program::machines::text;
use std::fs::File;
use std::os::unix::fs::FileExt;

const IMAGE: u64 = 256 << 20;

pub(super) fn measure(stage: &mut Stage<'_>) -> Outcome<()> {
    if !stage.wants("growth") {
        return Ok(());
    }
    let (file, store) = (stage.memory.join("image"), stage.disk.join("store"));
    image::write(&file, IMAGE, 1)?;
    let out = File::options().write(true).open(&file)?;
    let mut numbers = Numbers::new(9);
    let mut written = Vec::new();
    for number in 1..=100_u32 {
        // A hundredth of its pages change.
        for _ in 0..IMAGE / 4096 / 100 {
            let at = numbers.next() % (IMAGE / 4096) * 4096;
            out.write_all_at(&numbers.next().to_le_bytes(), at)?;
        }
        let to = format!("store:{}#s{number}", store.display());
        written.push(
            run(&["store", "import", "--json", "--raw", text(&file)?, &to])?
                .0
                .seconds,
        );
        if ![1, 10, 100].contains(&number) {
            continue;
        }
        let who = format!("{number} snapshots");
        let (ls, _) = run(&["store", "ls", "--json", text(&store)?])?;
        let (gc, _) = run(&["store", "gc", "--json", "--dry-run", text(&store)?])?;
        let last = written.iter().rev().take(3).copied().collect();
        stage.note(("growth, write the next one", &who, "s"), last, None)?;
        stage.note(("growth, ls", &who, "s"), vec![ls.seconds], ls.memory)?;
        stage.note(
            ("growth, gc --dry-run", &who, "s"),
            vec![gc.seconds],
            gc.memory,
        )?;
    }
    std::fs::remove_dir_all(&store)?;
    Ok(std::fs::remove_file(&file)?)
}
