//! multifd beside a real QEMU: the same image, the same machine, the same run. See BENCHMARKING.md.
#![allow(clippy::indexing_slicing)] // Figures of our own making.

mod cases;
mod chart;
mod end;
mod fresh;
mod growth;
mod image;
mod interrupt;
mod limits;
mod machine;
mod mapped;
mod measure;
mod ours;
mod ours_files;
mod process;
mod program;
mod qemu;
mod results;
mod store;
mod straight;
mod table;
mod transfer;

use clap::{Parser, Subcommand};
use ours::{RecvRole, SendRole};
use ours_files::FileRole;
use std::path::PathBuf;

/// Measures multifd and a real QEMU side by side.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// MiB of guest RAM
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..1 << 20))]
    size: u64,
    /// How often each case is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// At most 256 MiB, and a few cases only
    #[arg(long)]
    quick: bool,
    /// Write all figures to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw them into this file
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Only cases, limits and growths whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Where the memory lies: a folder on tmpfs
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// A folder on a disk
    #[arg(long, default_value = "/var/tmp")]
    disk: PathBuf,
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
    /// Measure the program, not the engine
    Program(program::Program),
    /// Measure stores of snapshots
    Store(store::Store),
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
        Some(Role::Save(role)) => ours_files::run_save(role),
        Some(Role::Load(role)) => ours_files::run_load(role),
        Some(Role::Program(args)) => program::run(args, &mut std::io::stdout()),
        Some(Role::Store(args)) => store::run(args, &mut std::io::stdout()),
        Some(Role::Image { file }) => image::write(file, cli.size << 20, 1).map_err(Into::into),
        None => measure::run(&cli, &mut std::io::stdout()),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("multifd-bench: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
