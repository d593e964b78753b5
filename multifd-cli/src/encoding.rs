//! How packets are encoded: the options, the method they make, and what came of an automatic choice.

use crate::failure::Failure;
use crate::method;
use crate::options::Compression;
use clap::Args;
use indicatif::HumanBytes;
use multifd_compress::{Auto, AutoReport, ChoiceReport, CompressPool, Qatzip, Qpl, Uadk, Zlib, Zstd};
use multifd_core::{Checksums, IndependentPackets, Method, Plain, Pooled};
use serde::Serialize;
use std::sync::Arc;

/// How packets are encoded.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Encoding {
    /// The compression; auto is for another multifd at the far end, as a QEMU takes one method only
    #[arg(long, value_name = "METHOD", default_value = "none")]
    pub(crate) compression: Compression,
    /// The compression's level: zlib 0 to 9, zstd 0 to 20, or auto for zstd; the others have none
    /// [default: 1]
    #[arg(long, value_name = "L", value_parser = parse_level)]
    pub(crate) level: Option<Level>,
    /// Threads that compress while the channels only send; 0: each channel compresses its own packets, as zlib always does
    /// [default: as many as there are processors, unless there are as many channels]
    #[arg(long, value_name = "N")]
    pub(crate) compress_threads: Option<u16>,
    /// Send checksums of packets and of their contents, not of the main connection, for another multifd; a QEMU does not mind
    #[arg(long)]
    pub(crate) checksum: bool,
}

/// A compression's level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// As asked for.
    Fixed(u8),
    /// Whatever finishes soonest.
    Auto,
}

/// Reads a level.
pub(crate) fn parse_level(text: &str) -> Result<Level, String> {
    match text {
        "auto" => Ok(Level::Auto),
        number => number
            .parse()
            .map(Level::Fixed)
            .map_err(|_| "a number from 0 to 20, or auto".into()),
    }
}

/// A method, and what tells what it chose if it is an automatic one.
pub(crate) struct Encoder {
    pub(crate) method: Arc<dyn Method>,
    auto: Option<Auto>,
}

impl Encoding {
    /// The method, for a transfer over `channels` channels.
    pub(crate) fn encoder(self, channels: Option<u8>) -> Result<Encoder, Failure> {
        let level = match (self.compression, self.level) {
            (_, None) => 1,
            (Compression::Zstd, Some(Level::Auto)) => 0,
            (Compression::Zlib | Compression::Zstd, Some(Level::Fixed(level))) => level,
            (Compression::Auto, Some(_)) => {
                return Err(Failure::Other(
                    "--compression auto chooses levels by itself; --level is for zlib and zstd".into(),
                ));
            }
            (compression, Some(level)) => {
                return Err(Failure::Other(format!(
                    "--level {} is for {}, and the compression is {}",
                    match level {
                        Level::Auto => "auto".into(),
                        Level::Fixed(level) => level.to_string(),
                    },
                    match level {
                        Level::Auto => "zstd",
                        Level::Fixed(_) => "zlib and zstd",
                    },
                    method::name(compression)
                )));
            }
        };
        let mut auto = None;
        let independent: Arc<dyn IndependentPackets> = match self.compression {
            Compression::Zlib => return self.on_channels(Arc::new(Zlib::new(level)?)),
            // There is nothing to compute.
            Compression::None => return self.on_channels(Arc::new(Plain)),
            Compression::Auto => Arc::new(auto.insert(Auto::mixed()).clone()),
            Compression::Zstd if self.level == Some(Level::Auto) => {
                Arc::new(auto.insert(Auto::zstd_level()).clone())
            }
            Compression::Zstd => Arc::new(Zstd::new(level)?),
            Compression::Qpl => Arc::new(Qpl),
            Compression::Uadk => Arc::new(Uadk),
            Compression::Qatzip => Arc::new(Qatzip),
        };
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let few = channels.is_none_or(|channels| usize::from(channels) < processors);
        let threads = self
            .compress_threads
            .map_or(if few { processors } else { 0 }, usize::from);
        let method: Arc<dyn Method> = if threads == 0 {
            Arc::new(independent)
        } else {
            Arc::new(Pooled::new(independent, Arc::new(CompressPool::new(threads)?)))
        };
        Ok(Encoder { method, auto })
    }

    fn on_channels(self, method: Arc<dyn Method>) -> Result<Encoder, Failure> {
        if self.compress_threads.unwrap_or(0) > 0 {
            return Err(Failure::Other(format!(
                "--compress-threads is for methods whose packets can be made by any thread; {} is not one",
                method::name(self.compression)
            )));
        }
        Ok(Encoder { method, auto: None })
    }

    /// What carries checksums, from memory that nobody writes to.
    pub(crate) fn checksums(self) -> Checksums {
        if self.checksum {
            Checksums::AtRest
        } else {
            Checksums::Off
        }
    }
}

/// What an automatic choice came to.
#[derive(Debug, Serialize)]
pub(crate) struct Chosen {
    #[serde(rename = "chosen")]
    name: String,
    link_bytes_per_second: Option<f64>,
    threads: f64,
    choices: Vec<ChosenChoice>,
    #[serde(skip)]
    why: String,
}

#[derive(Debug, Serialize)]
struct ChosenChoice {
    name: String,
    packets: u64,
    guest_bytes: u64,
    wire_bytes: u64,
    expected_bytes_per_second: Option<f64>,
}

impl Encoder {
    /// The compression's name; what was asked for, if it is an automatic one.
    pub(crate) fn name(&self) -> &'static str {
        match self.auto {
            Some(_) => "auto",
            None => self.method.kind().name(),
        }
    }

    /// What was chosen, and why.
    pub(crate) fn chosen(&self) -> Option<Chosen> {
        let report = self.auto.as_ref()?.report();
        let choice = |choice: &ChoiceReport| ChosenChoice {
            name: name(choice.level),
            packets: choice.packets,
            guest_bytes: choice.guest_bytes,
            wire_bytes: choice.wire_bytes,
            expected_bytes_per_second: choice.expected.filter(|speed| speed.is_finite()),
        };
        Some(Chosen {
            name: name(report.level),
            link_bytes_per_second: report.link,
            threads: report.threads,
            choices: report.choices.iter().map(choice).collect(),
            why: why(&report),
        })
    }
}

impl Chosen {
    /// A sentence for people.
    pub(crate) fn line(&self) -> &str {
        &self.why
    }
}

fn name(level: Option<i32>) -> String {
    level.map_or("none".into(), |level| format!("zstd {level}"))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Rates for people to read.
fn speed(bytes: f64) -> String {
    if bytes.is_finite() {
        format!("{}/s", HumanBytes(bytes as u64))
    } else {
        "no limit".into()
    }
}

fn why(report: &AutoReport) -> String {
    let link = report.link.map_or("nothing waited for the link".into(), |link| {
        format!("the link takes {}", speed(link))
    });
    let expected = report
        .choices
        .iter()
        .filter_map(|choice| Some(format!("{} {}", name(choice.level), speed(choice.expected?))));
    let expected: Vec<_> = expected.collect();
    let mut used: Vec<_> = report
        .choices
        .iter()
        .filter(|choice| choice.packets > 0)
        .collect();
    used.sort_by_key(|choice| std::cmp::Reverse(choice.packets));
    let used: Vec<_> = used
        .iter()
        .map(|choice| format!("{} packets by {}", choice.packets, name(choice.level)))
        .collect();
    format!(
        "chose {}: {link}, {:.1} threads compress; expected guest memory a second: {}; sent {}",
        name(report.level),
        report.threads,
        expected.join(", "),
        used.join(", "),
    )
}
