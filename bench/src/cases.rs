//! The things that are measured.

use crate::fresh::Warm;
use crate::ours::Compression;
use crate::qemu::Result;
use crate::transfer::{Ask, FileAsk, Stage, Took, Whose};

/// Who sends to whom; for files, whose the one end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairing {
    Ours,
    Qemus,
    FromQemu,
    ToQemu,
}

impl Pairing {
    fn ends(self) -> (Whose, Whose) {
        match self {
            Self::Ours => (Whose::Multifd, Whose::Multifd),
            Self::Qemus => (Whose::Qemu, Whose::Qemu),
            Self::FromQemu => (Whose::Qemu, Whose::Multifd),
            Self::ToQemu => (Whose::Multifd, Whose::Qemu),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "multifd",
            Self::Qemus => "QEMU",
            Self::FromQemu => "QEMU to multifd",
            Self::ToQemu => "multifd to QEMU",
        }
    }
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Transfer(Ask),
    Save(FileAsk),
    Load(FileAsk),
}

impl Case {
    /// What it has in common with the cases that differ from it in channels only.
    pub(crate) fn group(self) -> String {
        let of_file = |what: &str, ask: FileAsk| {
            let place = if ask.on_disk { "disk" } else { "tmpfs" };
            let direct = if ask.direct { ", direct" } else { "" };
            format!("mapped-ram {what}, {place}{direct}")
        };
        match self {
            Self::Transfer(ask) => format!(
                "{}, {}{}",
                ask.compression.name(),
                if ask.unix { "unix" } else { "tcp" },
                if ask.prealloc { ", prealloc" } else { "" }
            ),
            Self::Save(ask) => of_file("save", ask),
            Self::Load(ask) => of_file("load", ask),
        }
    }

    pub(crate) fn channels(self) -> u8 {
        match self {
            Self::Transfer(ask) => ask.channels,
            Self::Save(ask) | Self::Load(ask) => ask.channels,
        }
    }

    pub(crate) fn name(self) -> String {
        format!("{} x{}", self.group(), self.channels())
    }

    /// Who is measured, beside us.
    pub(crate) fn pairings(self, has_qemu: bool) -> Vec<Pairing> {
        // So many channels nobody gives a QEMU.
        if !has_qemu || self.channels() > 8 {
            return vec![Pairing::Ours];
        }
        match self {
            // Over Unix sockets mixed pairs show nothing that those over TCP do not, where the
            // codec takes all the time.
            Self::Transfer(ask) if !ask.unix || ask.compression == Compression::None => {
                vec![
                    Pairing::Ours,
                    Pairing::Qemus,
                    Pairing::FromQemu,
                    Pairing::ToQemu,
                ]
            }
            _ => vec![Pairing::Ours, Pairing::Qemus],
        }
    }

    fn takes_new_memory(self) -> bool {
        !matches!(self, Self::Transfer(ask) if ask.prealloc)
    }

    pub(crate) fn run(self, stage: &Stage, pair: Pairing) -> Result<Took> {
        let (from, to) = pair.ends();
        // What was there before may go first.
        stage.clear();
        let warm = if !stage.counting && self.takes_new_memory() {
            Warm::up(stage.folder.join("warm"), 2 * stage.bytes).map_err(|e| e.to_string())?
        } else {
            None
        };
        let took = match self {
            Self::Transfer(ask) => stage.run(ask, from, to, warm),
            // What a QEMU has saved is loaded in the case that follows; what we have, here.
            Self::Save(ask) => stage.save(from, ask, warm).and_then(|took| match pair {
                Pairing::Ours => stage.load(from, ask, None).map(|_| took),
                _ => Ok(took),
            }),
            Self::Load(ask) => stage.load(from, ask, warm),
        };
        let took = took.map_err(|e| format!("{}, {}: {e}", self.name(), pair.name()))?;
        let has_arrived = !matches!(self, Self::Save(_)) || pair == Pairing::Ours;
        if !has_arrived || stage.is_same()? {
            return Ok(took);
        }
        Err(format!(
            "{}, {}: the memory differs",
            self.name(),
            pair.name()
        ))
    }
}

/// Runs a case with each pairing, one after the other, again and again, every second time in the
/// other order: what the machine does meanwhile is done to all, and what one leaves behind is found
/// by each.
pub(crate) fn in_turn(
    case: Case,
    stage: &Stage,
    pairings: &[Pairing],
    times: u16,
) -> Result<Vec<Vec<Took>>> {
    let mut runs = vec![Vec::new(); pairings.len()];
    for time in 0..times {
        let mut order: Vec<_> = pairings.iter().zip(&mut runs).collect();
        if time % 2 == 1 {
            order.reverse();
        }
        for (pairing, runs) in order {
            runs.push(case.run(stage, *pairing)?);
        }
    }
    Ok(runs)
}

/// All cases, or those of a quick run; the slowest last.
pub(crate) fn cases(quick: bool) -> Vec<Case> {
    use Compression::{None, Zlib, Zstd};
    if quick {
        return [
            transfers(None, false, false, &[1, 2, 4]),
            transfers(None, false, true, &[1, 2, 4]),
            transfers(None, true, false, &[2]),
            transfers(Zstd, false, false, &[2]),
            files(false, false, &[2]),
        ]
        .concat();
    }
    let (some, more): (&[u8], &[u8]) = (&[1, 2, 4, 8], &[1, 2, 4, 8, 16, 64]);
    [
        transfers(None, false, false, more),
        transfers(None, false, true, more),
        transfers(None, true, false, some),
        files(false, false, &[1, 2]),
        files(true, false, &[1, 2]),
        files(true, true, &[1, 2]),
        transfers(Zstd, false, false, more),
        transfers(Zstd, true, false, some),
        transfers(Zlib, false, false, more),
        transfers(Zlib, true, false, some),
    ]
    .concat()
}

fn transfers(compression: Compression, unix: bool, prealloc: bool, channels: &[u8]) -> Vec<Case> {
    let ask = |&channels| Ask {
        unix,
        compression,
        channels,
        prealloc,
    };
    channels.iter().map(ask).map(Case::Transfer).collect()
}

/// Saving and loading, in turn: what is loaded is what was saved.
fn files(on_disk: bool, direct: bool, channels: &[u8]) -> Vec<Case> {
    let ask = |&channels| FileAsk {
        channels,
        on_disk,
        direct,
    };
    let asks = channels.iter().map(ask);
    asks.flat_map(|ask| [Case::Save(ask), Case::Load(ask)])
        .collect()
}
