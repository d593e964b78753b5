//! An image into a store, beside programs that compress or back up a file.

use super::peers::{has, program, size, zstd_alone};
use super::{Stage, Way};
use crate::image;
use crate::ours::Outcome;
use crate::program::command::run;
use crate::program::machines::text;
use std::path::Path;

/// Empties a folder.
fn fresh(folder: &Path) -> Outcome<()> {
    let _ = std::fs::remove_dir_all(folder);
    Ok(std::fs::create_dir_all(folder)?)
}

/// Writes an image into a new store.
fn import(image: &Path, store: &Path, chunk: &str) -> Outcome<(f64, Option<u64>)> {
    fresh(store)?;
    let to = format!("store:{}#image", store.display());
    let args = [
        "store",
        "import",
        "--json",
        "--raw",
        text(image)?,
        &to,
        "--chunk-size",
        chunk,
    ];
    let (took, _) = run(&args)?;
    Ok((took.seconds, took.memory))
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
fn mib(bytes: u64) -> Vec<f64> {
    vec![bytes as f64 / 1_048_576.0]
}

/// What chunk sizes cost.
fn chunk_sizes(stage: &mut Stage<'_>, image: &Path) -> Outcome<()> {
    let store = stage.disk.join("chunks");
    for chunk in ["4096", "16384", "65536", "262144"] {
        let mut seconds = Vec::new();
        for _ in 0..stage.runs {
            seconds.push(import(image, &store, chunk)?.0);
        }
        stage.note(("chunk sizes, write", chunk, "s"), seconds, None)?;
        stage.note(
            ("chunk sizes, size", chunk, "MiB"),
            mib(size(&store)?),
            None,
        )?;
    }
    Ok(std::fs::remove_dir_all(&store)?)
}

pub(super) fn measure(stage: &mut Stage<'_>) -> Outcome<()> {
    let case = format!("write {} MiB", stage.bytes >> 20);
    if !stage.wants(&case) {
        return Ok(());
    }
    let file = stage.memory.join("image");
    image::write(&file, stage.bytes, 1)?;
    let (disk, chunk) = (stage.disk.clone(), stage.chunk.clone());
    let piece: usize = chunk.parse()?;
    let at = |name: &str| disk.join(name);
    let image = text(&file)?.to_owned();
    let mut ways: Vec<Way<'_>> = vec![
        (
            "zstd alone, nothing written",
            Box::new(|| Ok((zstd_alone(&file, piece, None)?, None))),
        ),
        (
            "zstd alone, written and synced",
            Box::new(|| Ok((zstd_alone(&file, piece, Some(&at("pieces")))?, None))),
        ),
        (
            "multifd store import",
            Box::new(|| import(&file, &at("store"), &chunk)),
        ),
        (
            "zstd -1 -T0",
            Box::new(|| {
                let out = at("zst");
                let args = ["-1", "-T0", "-q", "-f", &image, "-o", text(&out)?];
                Ok((program("zstd", &args, &[])?, None))
            }),
        ),
    ];
    let restic = [("RESTIC_PASSWORD", "x")];
    if has("restic") {
        ways.push((
            "restic backup",
            Box::new(|| {
                fresh(&at("restic"))?;
                let repository = at("restic");
                let base = ["-q", "-r", text(&repository)?, "--no-cache"];
                program("restic", &[&base[..], &["init"]].concat(), &restic)?;
                let args = [&base[..], &["backup", &image]].concat();
                Ok((program("restic", &args, &restic)?, None))
            }),
        ));
    }
    if has("borg") {
        ways.push((
            "borg create (zstd,1)",
            Box::new(|| {
                fresh(&at("borg"))?;
                let repository = at("borg");
                program("borg", &["init", "-e", "none", text(&repository)?], &[])?;
                let archive = format!("{}::image", repository.display());
                Ok((
                    program("borg", &["create", "-C", "zstd,1", &archive, &image], &[])?,
                    None,
                ))
            }),
        ));
    }
    stage.in_turn(&case, ways)?;
    let whole = std::fs::metadata(at("zst"))?.len();
    stage.note((&case, "zstd -1 -T0", "MiB"), mib(whole), None)?;
    stage.note(
        (&case, "multifd store import", "MiB"),
        mib(size(&at("store"))?),
        None,
    )?;
    for name in ["restic", "borg"] {
        if at(name).is_dir() {
            stage.note((&case, name, "MiB"), mib(size(&at(name))?), None)?;
        }
    }
    chunk_sizes(stage, &file)?;
    for name in ["store", "zst", "restic", "borg", "pieces"] {
        let _ = std::fs::remove_dir_all(at(name));
        let _ = std::fs::remove_file(at(name));
    }
    Ok(std::fs::remove_file(&file)?)
}
