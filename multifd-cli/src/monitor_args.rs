//! Commands that work with a QEMU by its monitor: help, completions and man pages are made from
//! these definitions.

use crate::args::Memory;
use crate::options::{Control, Deadlines, Dialect, Direct, Image, Show, Writing, YEAR};
use crate::output::Storing;
use crate::threads::Threads;
use clap::Args;
use std::path::PathBuf;

/// Take a snapshot of a running QEMU into a mapped-ram file
///
/// A running guest runs on while its memory is copied, stands still for the last of it, and goes
/// on. One that is paused, or was not started yet, stays stopped: QEMU then calls it postmigrate,
/// and does not migrate it again before it has run on (cont). One that stands still for another
/// reason (a panic, an I/O error, a shutdown) needs --stop, as QEMU forgets the reason; one that is
/// suspended to RAM is refused, as QEMU could not let it go on. Capabilities and parameters that
/// had to be changed are changed back, by the next run if this one is killed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd snapshot --qmp /run/vm.qmp --out vm.mapped
  multifd snapshot --qmp unix:/run/vm.qmp --out vm.mapped --channels 8 --compression zstd --stop")]
pub(crate) struct Snapshot {
    #[command(flatten)]
    pub(crate) control: Control,
    /// The file to write, or the snapshot in a store: store:STORE#NAME
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Keep the memory as of one instant, with one short pause, however fast the guest writes
    ///
    /// QEMU's background-snapshot: memory is write-protected and copied while the guest runs. The
    /// host must let QEMU use userfaultfd. Pages go over one connection.
    #[arg(long, conflicts_with = "stop")]
    pub(crate) background: bool,
    /// Rounds, as QEMU counts them, after which a guest that dirties its memory too fast is stopped
    /// early
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) max_rounds: u64,
    #[command(flatten)]
    pub(crate) memory: Memory,
    #[command(flatten)]
    pub(crate) writing: Writing,
    #[command(flatten)]
    pub(crate) storing: Storing,
    #[command(flatten)]
    pub(crate) deadlines: Deadlines,
    #[command(flatten)]
    pub(crate) threads: Threads,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// When memory is checked against its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Verification {
    /// Before anything is given to QEMU
    First,
    /// While the guest runs
    Background,
}

/// Restore a snapshot into a QEMU that was started with -incoming defer
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  qemu-system-x86_64 ... -incoming defer -qmp unix:/run/vm.qmp,server=on,wait=off
  multifd restore --qmp /run/vm.qmp vm.mapped
  qemu-system-x86_64 ... $(multifd qemu-options vm.mapped) -qmp unix:/run/vm.qmp,server=on,wait=off
  multifd restore --instant --qmp /run/vm.qmp vm.mapped")]
pub(crate) struct Restore {
    #[command(flatten)]
    pub(crate) image: Image,
    #[command(flatten)]
    pub(crate) control: Control,
    /// Have the snapshot become the RAM of a QEMU that maps its file (see `multifd qemu-options`):
    /// only device state is loaded, and pages come from the file when the guest touches them
    #[arg(long, conflicts_with_all = ["compression", "direct_io", "sync", "zero_pages"])]
    pub(crate) instant: bool,
    /// Check all memory against the checksums of the companion, and refuse a damaged file: first,
    /// before anything is given to QEMU; or, with --instant, in the background while the guest runs,
    /// which is stopped if a page turns out to be damaged
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "first")]
    pub(crate) verify: Option<Verification>,
    /// Whether QEMU reads page data past the page cache
    #[arg(long, value_name = "WHEN", default_value = "off")]
    pub(crate) direct_io: Direct,
    #[command(flatten)]
    pub(crate) dialect: Dialect,
    #[command(flatten)]
    pub(crate) deadlines: Deadlines,
    #[command(flatten)]
    pub(crate) threads: Threads,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Print the options with which a QEMU maps a snapshot as its RAM
///
/// They go beside those that the snapshot's QEMU was started with; backends that these name must be
/// left out. `multifd restore --instant` then has that QEMU go on from the snapshot.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  qemu-system-x86_64 -M q35 -m 2G $(multifd qemu-options vm.mapped) -qmp unix:/run/vm.qmp,server=on,wait=off
  multifd qemu-options vm.mapped --json")]
pub(crate) struct QemuOptions {
    #[command(flatten)]
    pub(crate) image: Image,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Start a QEMU from a snapshot in a moment: its RAM is a private mapping of the file
///
/// After -- comes the command line that the snapshot's QEMU was started with. It gets the options of
/// `multifd qemu-options`, goes on where the snapshot was taken, and is yours from then on: its
/// monitors, its terminal, its exit status. With -S its guest stays stopped. In the arguments of
/// several QEMUs, {n} is the number of each, from 1 on. The file must stay as it is while they run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd run vm.mapped -- qemu-system-x86_64 -M q35 -m 2G -nographic
  multifd run vm.mapped --count 8 -- qemu-system-x86_64 -M q35 -m 2G -display none -serial file:vm{n}.log")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) image: Image,
    /// How many QEMUs to start; they share all memory that they do not write to
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: u32,
    /// Check all memory against the checksums of the companion: first, before any QEMU is started,
    /// or in the background while they run, which are stopped if a page turns out to be damaged
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "first")]
    pub(crate) verify: Option<Verification>,
    /// Seconds that a QEMU may take to start and to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub(crate) timeout: u64,
    /// No notes; only errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// QEMU and its arguments
    #[arg(value_name = "QEMU", required = true, last = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}
