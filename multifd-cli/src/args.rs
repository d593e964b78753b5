//! The command line: help, completions and man pages are all made from these definitions.

use crate::encoding::{Encoding, Level, parse_level};
use crate::method::{AnyChoice, Choice};
use crate::monitor_args::{QemuOptions, Restore, Run, Snapshot};
use crate::network::{Entrance, Exit, Tuning};
use crate::options::{
    ClientTls, Dialect, Image, MAX_MEMORY, RelayTls, ServerTls, Show, Writing, YEAR, ZeroCopy,
};
use crate::output::Storing;
use crate::size::parse_size;
use crate::store_args::{Key, MountArgs, StoreCommand};
use crate::threads::Threads;
use clap::{Args, Parser, Subcommand};
use multifd_core::MemoryBudget;
use multifd_core::packet::Uuid;
use std::path::PathBuf;
use std::time::Duration;

/// Moves the memory of virtual machines in parallel over many channels, as QEMU's multifd does.
#[derive(Debug, Parser)]
#[command(
    name = "multifd",
    version,
    arg_required_else_help = true,
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Recv(Recv),
    Send(Send),
    Relay(Relay),
    Snapshot(Snapshot),
    Restore(Restore),
    QemuOptions(QemuOptions),
    Run(Run),
    Inspect(Inspect),
    Extract(Extract),
    Verify(Verify),
    Diff(Diff),
    Store(StoreCommand),
    Mount(MountArgs),
    Demo(Demo),
    Completions(Completions),
    Man(Man),
}

impl Command {
    /// Whether its result is printed as JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Recv(args) => args.show.json,
            Self::Send(args) => args.show.json,
            Self::Relay(args) => args.show.json,
            Self::Snapshot(args) => args.show.json,
            Self::Restore(args) => args.show.json,
            Self::QemuOptions(args) => args.show.json,
            Self::Inspect(args) => args.show.json,
            Self::Verify(args) => args.show.json,
            Self::Diff(args) => args.show.json,
            Self::Extract(args) => args.show.json,
            Self::Store(args) => args.json(),
            Self::Mount(args) => args.show.json,
            Self::Demo(args) => args.show.json,
            Self::Run(_) | Self::Completions(_) | Self::Man(_) => false,
        }
    }
}

/// Which packets are taken.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Trust {
    /// Refuse packets without a checksum of themselves and of their contents; those that have one
    /// are checked in any case
    #[arg(long)]
    pub(crate) require_checksum: bool,
}

/// How long the other end may take.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Finishing {
    /// Seconds to wait, when all is sent, for the destination to be done with it
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    finish_timeout: u64,
}

impl Finishing {
    pub(crate) fn timeout(self) -> Duration {
        Duration::from_secs(self.finish_timeout)
    }
}

/// How much a peer may make this process hold.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Memory {
    /// Most memory held for the source beside guest RAM, over all channels: device sections, zstd
    /// windows above 1 MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = MAX_MEMORY)]
    max_memory: u64,
}

impl Memory {
    pub(crate) fn budget(self) -> MemoryBudget {
        MemoryBudget::new(self.max_memory)
    }
}

/// Receive a VM: act as the destination of a QEMU migration
///
/// The number of channels and the compression are learned from the stream; a source without
/// channels (the capability multifd off, or background-snapshot on) is taken, too. The result is a
/// mapped-ram file; it appears under its name only when all of it has arrived and is on the disk.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd recv --listen tcp:0.0.0.0:4444 --out vm.mapped
      then, at the QEMU monitor of the source:
      migrate_set_capability multifd on
      migrate_set_parameter multifd-channels 4
      migrate tcp:THIS_HOST:4444
  multifd recv --listen unix:/run/vm.sock --channels 8 --out vm.mapped --json
  multifd recv --listen tcp:0.0.0.0:4444 --out store:/var/lib/vms#monday
  multifd recv --listen tcp:10.0.0.2:4444 --allow 10.0.0.0/24 --tls-creds /etc/pki/qemu --out vm.mapped")]
pub(crate) struct Recv {
    #[command(flatten)]
    pub(crate) entrance: Entrance,
    /// The file to write, or the snapshot in a store: store:STORE#NAME
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// How many channels there must be [default: as many as connect]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) channels: Option<u8>,
    /// The only compression accepted [default: whatever the source uses, packet by packet]
    #[arg(long, value_name = "METHOD", value_parser = AnyChoice)]
    pub(crate) compression: Option<Choice>,
    #[command(flatten)]
    pub(crate) trust: Trust,
    /// The only VM accepted, by its UUID [default: any, but one]
    #[arg(long, value_name = "UUID")]
    pub(crate) uuid: Option<Uuid>,
    /// Most guest RAM accepted: bytes, or with K, M, G, T [default: as much as this machine has]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_ram: Option<u64>,
    #[command(flatten)]
    pub(crate) memory: Memory,
    /// Take a stream without QEMU's description at its end (a machine with suppress-vmdesc=on);
    /// under TLS it must end as TLS does then
    #[arg(long)]
    pub(crate) allow_no_vmdesc: bool,
    #[command(flatten)]
    pub(crate) tls: ServerTls,
    #[command(flatten)]
    pub(crate) writing: Writing,
    #[command(flatten)]
    pub(crate) storing: Storing,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
    #[command(flatten)]
    pub(crate) threads: Threads,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Send a VM, or a raw RAM image: act as the source of a QEMU migration
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd send vm.mapped --to tcp:HOST:4444 --channels 4 --compression zstd
  multifd send vm.mapped --to tcp:HOST:4444 --compression auto --checksum
      to another multifd, which takes whatever comes
  multifd send vm.mapped --to tcp:10.0.0.2:4444 --to tcp:10.1.0.2:4444 --channels 8 --max-bandwidth 500M
      over two networks
  multifd send --raw RAM.bin --block pc.ram --to unix:/run/vm.sock")]
pub(crate) struct Send {
    /// The mapped-ram file to send, or a snapshot in a store: store:STORE#NAME
    #[arg(
        value_name = "FILE",
        required_unless_present = "raw",
        conflicts_with = "raw"
    )]
    pub(crate) file: Option<PathBuf>,
    /// Where in the file the migration begins, in bytes [default: at its start; in a save image,
    /// where libvirt has put it]
    #[arg(long, value_name = "BYTES", value_parser = parse_size, conflicts_with = "raw")]
    pub(crate) offset: Option<u64>,
    #[command(flatten)]
    pub(crate) key: Key,
    /// A raw RAM image to send instead: memory and nothing else, for another multifd to receive
    #[arg(long, value_name = "FILE")]
    pub(crate) raw: Option<PathBuf>,
    /// The RAM block that the raw image is
    #[arg(long, value_name = "NAME", default_value = "pc.ram", requires = "raw")]
    pub(crate) block: String,
    #[command(flatten)]
    pub(crate) exit: Exit,
    /// How many channels
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) channels: u8,
    #[command(flatten)]
    pub(crate) encoding: Encoding,
    /// Whether uncompressed pages are sent without a copy (`MSG_ZEROCOPY`): it pays on fast links,
    /// not on this machine alone
    #[arg(long, value_name = "WHEN", default_value = "off")]
    pub(crate) zero_copy: ZeroCopy,
    /// The VM's UUID, for a destination that was given one [default: the one in the companion, if
    /// there is one]
    #[arg(long, value_name = "UUID")]
    pub(crate) uuid: Option<Uuid>,
    #[command(flatten)]
    pub(crate) tls: ClientTls,
    #[command(flatten)]
    pub(crate) dialect: Dialect,
    #[command(flatten)]
    pub(crate) finishing: Finishing,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
    #[command(flatten)]
    pub(crate) threads: Threads,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Pass a migration on, its packets encoded anew: between two QEMUs, or two of anything that speaks
/// the protocol
///
/// The main connection passes as it is; what comes over the channels is decoded, encoded by another
/// method, and sent over as many channels as wanted, round by round. Guest RAM is not held. Two
/// relays make a compressed tunnel for QEMUs that send without compression.
///
/// That it succeeds says that everything was passed on, both ways, to the end; whether the
/// destination took it, the two ends know.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  on the source's side of a slow link:
  multifd relay --listen tcp:127.0.0.1:4444 --to tcp:FAR_RELAY:4445 --compression auto
  on the destination's side, where QEMU listens on port 4444 with 4 channels:
  multifd relay --listen tcp:0.0.0.0:4445 --to tcp:127.0.0.1:4444 --channels 4")]
pub(crate) struct Relay {
    #[command(flatten)]
    pub(crate) entrance: Entrance,
    #[command(flatten)]
    pub(crate) exit: Exit,
    /// How many channels go out [default: as many as come in]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) channels: Option<u8>,
    /// How many channels come in [default: as many as connect]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) from_channels: Option<u8>,
    #[command(flatten)]
    pub(crate) tls: RelayTls,
    #[command(flatten)]
    pub(crate) encoding: Encoding,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) memory: Memory,
    #[command(flatten)]
    pub(crate) finishing: Finishing,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
    #[command(flatten)]
    pub(crate) threads: Threads,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Show what is in a mapped-ram file
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd inspect vm.mapped
  multifd inspect vm.mapped --svg memory.svg --json")]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) image: Image,
    /// Draw the map of memory into an SVG file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Replace the SVG file if there is one
    #[arg(long, requires = "svg")]
    pub(crate) force: bool,
    /// With --json: print the map of memory, too, up to 1024 numbers a RAM block
    #[arg(long, requires = "json")]
    pub(crate) map: bool,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Write the exact bytes of one RAM block, or an ELF core of all guest memory
///
/// A core has memory where the guest sees it, as QEMU's dump-guest-memory writes it, and the
/// processors' registers. Where memory lies is known of snapshots that `multifd snapshot` took; of
/// others, only where a PC's own device state proves it, and RAM and firmware alone are in the core
/// then. Otherwise --layout says it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd extract vm.mapped --block pc.ram --out RAM.bin
  multifd extract vm.mapped --elf core.elf && gdb -ex 'x/4x 0x8000' -c core.elf")]
pub(crate) struct Extract {
    #[command(flatten)]
    pub(crate) image: Image,
    /// The RAM block
    #[arg(
        long,
        value_name = "NAME",
        requires = "out",
        required_unless_present = "elf",
        conflicts_with = "elf"
    )]
    pub(crate) block: Option<String>,
    /// The file to write the block to
    #[arg(
        long,
        short,
        value_name = "FILE",
        requires = "block",
        conflicts_with = "elf"
    )]
    pub(crate) out: Option<PathBuf>,
    /// The ELF core to write: guest physical memory, at its addresses
    #[arg(long, value_name = "FILE")]
    pub(crate) elf: Option<PathBuf>,
    /// Where memory lies: what QEMU's monitor prints for `info mtree -f`
    #[arg(long, value_name = "FILE", requires = "elf", conflicts_with = "block")]
    pub(crate) layout: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Check that a mapped-ram file is whole, and holds the memory it was written with
///
/// Its structure is checked, and every page against the checksums in its companion (FILE.crc), if
/// there is one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd verify vm.mapped --json")]
pub(crate) struct Verify {
    #[command(flatten)]
    pub(crate) image: Image,
    /// Fail if there is no companion
    #[arg(long)]
    pub(crate) require_digest: bool,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Count and list the pages in which two mapped-ram files differ
///
/// The exit status is 0 if they hold the same memory, 1 if not, and 2 if they cannot be compared.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd diff before.mapped after.mapped --list")]
pub(crate) struct Diff {
    /// One mapped-ram file, or a snapshot in a store: store:STORE#NAME
    #[arg(value_name = "A")]
    pub(crate) one: PathBuf,
    /// Another of the same machine
    #[arg(value_name = "B")]
    pub(crate) other: PathBuf,
    /// Where in A the migration begins, in bytes [default: at its start; in a save image, where
    /// libvirt has put it]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) offset: Option<u64>,
    /// The same in B
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) other_offset: Option<u64>,
    #[command(flatten)]
    pub(crate) key: Key,
    /// List the ranges that differ, too
    #[arg(long)]
    pub(crate) list: bool,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Send a made-up memory image over loopback by every method, compare every byte, show how fast it
/// was
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd demo
  multifd demo --size 2G --channels 1,8 --compression zstd --level 3")]
pub(crate) struct Demo {
    /// How much memory: bytes, or with K, M, G (powers of 1024)
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub(crate) size: u64,
    /// Numbers of channels to try
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2,4",
          value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) channels: Vec<u8>,
    /// Methods to try
    #[arg(
        long,
        value_name = "METHOD,...",
        value_delimiter = ',',
        default_value = "none,zlib,zstd",
        value_parser = AnyChoice
    )]
    pub(crate) compression: Vec<Choice>,
    /// The compression's level: zlib 0 to 9, zstd 0 to 20, or auto for zstd
    #[arg(long, value_name = "L", default_value = "1", value_parser = parse_level)]
    pub(crate) level: Level,
    /// Seed of the image
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd completions bash > /etc/bash_completion.d/multifd")]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Write the man pages into a folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// The folder
    pub(crate) folder: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn send_takes_a_file_or_a_raw_image() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(parse("multifd send vm.mapped --to tcp:h:1").is_ok());
        assert!(parse("multifd send --raw RAM.bin --block pc.ram --to unix:/s").is_ok());
        assert!(parse("multifd send --to tcp:h:1").is_err());
        assert!(parse("multifd send vm.mapped --raw RAM.bin --to tcp:h:1").is_err());
        assert!(parse("multifd send vm.mapped --to h:1").is_err());
        assert!(parse("multifd recv --listen tcp:h:1 --out f --channels 0").is_err());
        assert!(parse("multifd extract f --out o --elf e").is_err());
        assert!(parse("multifd extract f --block b --out o --elf e").is_err());
        assert!(parse("multifd extract f --block b --out o --layout l").is_err());
        assert!(parse("multifd snapshot --qmp q --out f --compression auto").is_err());
        assert!(parse("multifd snapshot --qmp q --out f --compression zstd").is_ok());
        let help = Cli::command()
            .find_subcommand_mut("restore")
            .map(|c| c.render_long_help().to_string());
        let help = help.unwrap();
        let methods = help
            .split("--compression")
            .nth(1)
            .unwrap()
            .split("--")
            .next()
            .unwrap()
            .to_owned();
        assert!(
            methods.contains("qatzip") && !methods.contains("auto"),
            "{methods}"
        );
    }
}
