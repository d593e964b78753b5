//! multifd beside a real QEMU: the same image, the same machine, the same run. See BENCHMARKING.md.
#![allow(clippy::indexing_slicing)] // Figures of our own making.

mod image;
mod ours;
mod process;
mod qemu;
mod transfer;

use clap::{Parser, Subcommand};
use ours::{Compression, FileRole, RecvRole, SendRole};
use std::path::PathBuf;
use transfer::{Ask, Stage, Whose};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// MiB of guest RAM
    #[arg(long, default_value_t = 2048)]
    size: u64,
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Where the memory lies: a folder on tmpfs
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
}

/// One end of a transfer, which this program starts itself.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Send(SendRole),
    #[command(hide = true)]
    Recv(RecvRole),
    #[command(hide = true)]
    Save(FileRole),
    #[command(hide = true)]
    Load(FileRole),
    /// Write an image as the runs use it
    Image {
        /// The file
        file: PathBuf,
    },
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.role {
        Some(Role::Send(role)) => ours::run_send(role),
        Some(Role::Recv(role)) => ours::run_recv(role),
        Some(Role::Save(role)) => ours::run_save(role),
        Some(Role::Load(role)) => ours::run_load(role),
        Some(Role::Image { file }) => image::write(file, cli.size << 20, 1).map_err(Into::into),
        None => first(&cli).map_err(Into::into),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("multifd-bench: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn first(cli: &Cli) -> qemu::Result<()> {
    let folder = tempfile::tempdir_in(&cli.memory).map_err(|e| e.to_string())?;
    let stage = Stage {
        image: folder.path().join("image"),
        bytes: cli.size << 20,
        folder: folder.path().into(),
        machine: None,
    };
    image::write(&stage.image, stage.bytes, 1).map_err(|e| e.to_string())?;
    for compression in [Compression::None, Compression::Zstd, Compression::Zlib] {
        for channels in [1, 2, 4] {
            for prealloc in [false, true] {
                if prealloc && compression != Compression::None {
                    continue;
                }
                let name = format!("{} {channels} {prealloc}", compression.name());
                if !name.contains(&cli.only) {
                    continue;
                }
                for _ in 0..cli.runs {
                    for whose in [Whose::Multifd, Whose::Qemu] {
                        let ask = Ask {
                            from: whose,
                            to: whose,
                            unix: false,
                            compression,
                            channels,
                            prealloc,
                        };
                        let took = stage.run(&ask)?;
                        let same = stage.is_same()?;
                        let gib = stage.bytes as f64 / (1u64 << 30) as f64;
                        println!(
                            "{name:16} {:8} {:.3} s {:.2} GiB/s cpu/GiB {:.2} mem {:.1} MiB same {same}",
                            whose.name(),
                            took.seconds,
                            gib / took.seconds,
                            took.cpu / gib,
                            took.memory as f64 / (1 << 20) as f64
                        );
                    }
                }
            }
        }
    }
    Ok(())
}
