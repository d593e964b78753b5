//! The command line: help, completions and man pages are all made from these definitions.

use crate::size::parse_size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use multifd_transport_socket::{Address, SocketOptions};
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
    Extract(Extract),
    Demo(Demo),
    Completions(Completions),
    Man(Man),
}

/// How results and progress are shown.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Show {
    /// Print the result as one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress, no notes; only results and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Deadlines of connections.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Deadlines {
    /// Seconds to wait for a connection to be made
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) connect_timeout: u64,
    /// Seconds without a byte on any connection after which the peer is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
}

impl Deadlines {
    pub(crate) fn socket(self) -> SocketOptions {
        SocketOptions {
            connect: Duration::from_secs(self.connect_timeout),
            stall: Duration::from_secs(self.timeout),
        }
    }
}

/// A compression method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    /// No compression
    None,
    /// One zlib stream a channel
    Zlib,
    /// One zstd frame a channel
    Zstd,
}

/// Receive a VM: act as the destination of a QEMU migration
///
/// The number of channels and the compression are learned from the stream. The result is a mapped-ram file; it appears under its
/// name only when all of it has arrived and is on the disk.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd recv --listen tcp:0.0.0.0:4444 --out vm.mapped
      then, at the QEMU monitor of the source:
      migrate_set_capability multifd on
      migrate_set_parameter multifd-channels 4
      migrate tcp:THIS_HOST:4444
  multifd recv --listen unix:/run/vm.sock --channels 8 --out vm.mapped --json")]
pub(crate) struct Recv {
    /// Where to listen: tcp:HOST:PORT or unix:PATH; port 0 lets the system choose
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Address,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// How many channels there must be [default: as many as connect]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) channels: Option<u8>,
    /// The only compression accepted [default: whatever the source uses]
    #[arg(long, value_name = "METHOD")]
    pub(crate) compression: Option<Compression>,
    /// The only VM accepted, by its UUID [default: any, but one]
    #[arg(long, value_name = "UUID", value_parser = parse_uuid)]
    pub(crate) uuid: Option<Uuid>,
    /// Take a stream without QEMU's description at its end (a machine with suppress-vmdesc=on)
    #[arg(long)]
    pub(crate) allow_no_vmdesc: bool,
    /// Replace the file if there is one
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) deadlines: Deadlines,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Send a VM, or a raw RAM image: act as the source of a QEMU migration
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd send vm.mapped --to tcp:HOST:4444 --channels 4 --compression zstd
  multifd send --raw RAM.bin --block pc.ram --to unix:/run/vm.sock")]
pub(crate) struct Send {
    /// The mapped-ram file to send
    #[arg(value_name = "FILE", required_unless_present = "raw", conflicts_with = "raw")]
    pub(crate) file: Option<PathBuf>,
    /// A raw RAM image to send instead: memory and nothing else, for another multifd to receive
    #[arg(long, value_name = "FILE")]
    pub(crate) raw: Option<PathBuf>,
    /// The RAM block that the raw image is
    #[arg(long, value_name = "NAME", default_value = "pc.ram", requires = "raw")]
    pub(crate) block: String,
    /// Where to send it: tcp:HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) to: Address,
    /// How many channels
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) channels: u8,
    /// The compression
    #[arg(long, value_name = "METHOD", default_value = "none")]
    pub(crate) compression: Compression,
    /// The compression's level: zlib 0 to 9, zstd 0 to 20
    #[arg(long, value_name = "L", default_value_t = 1)]
    pub(crate) level: u8,
    /// The VM's UUID, for a destination that was given one (a mapped-ram file does not keep it)
    #[arg(long, value_name = "UUID", value_parser = parse_uuid)]
    pub(crate) uuid: Option<Uuid>,
    /// Seconds to wait, when all is sent, for the destination to be done with it
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) finish_timeout: u64,
    #[command(flatten)]
    pub(crate) deadlines: Deadlines,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Write the exact bytes of one RAM block
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd extract vm.mapped --block pc.ram --out RAM.bin")]
pub(crate) struct Extract {
    /// The mapped-ram file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The RAM block
    #[arg(long, value_name = "NAME")]
    pub(crate) block: String,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Replace the file if there is one
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Send a made-up memory image over loopback by every method, compare every byte, show how fast it was
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
        default_value = "none,zlib,zstd"
    )]
    pub(crate) compression: Vec<Compression>,
    /// The compression's level
    #[arg(long, value_name = "L", default_value_t = 1)]
    pub(crate) level: u8,
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

/// A UUID as its 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uuid(pub(crate) [u8; 16]);

fn parse_uuid(text: &str) -> Result<Uuid, String> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let valid = groups == [8, 4, 4, 4, 12] && digits.chars().all(|c| c.is_ascii_hexdigit());
    match u128::from_str_radix(&digits, 16) {
        Ok(value) if valid => Ok(Uuid(value.to_be_bytes())),
        _ => Err("write it as 01234567-89ab-cdef-0123-456789abcdef".into()),
    }
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
    fn uuids_are_read_in_their_usual_form_only() {
        let uuid = parse_uuid("5eed5eed-0000-4000-8000-00000000c0de").unwrap();
        assert_eq!(uuid.0[..4], [0x5e, 0xed, 0x5e, 0xed]);
        assert_eq!(uuid.0[14..], [0xc0, 0xde]);
        for bad in [
            "",
            "5eed",
            "5eed5eed000040008000-00000000c0de",
            "+eed5eed-0000-4000-8000-00000000c0de",
        ] {
            assert!(parse_uuid(bad).is_err(), "{bad}");
        }
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
    }
}
