//! virtio-mem: of its memory only what the guest has plugged is there.

use super::{LayoutError, MAX_RANGES, PhysicalRange};
use crate::{DeviceState, Tail};

/// Sections of the device, with the memory's state in them: newer machines send it before the RAM.
const SECTIONS: [&str; 2] = ["virtio-mem-device-early", "virtio-mem-device"];

/// Smallest block that virtio-mem plugs.
const MIN_BLOCK: u64 = 1 << 20;

/// Which bytes of a RAM block are plugged.
struct Plugged {
    /// The device's path: the RAM block's name begins with it.
    path: String,
    /// Guest physical address of its first byte.
    address: u64,
    /// Bytes that one bit stands for.
    block_size: u64,
    bitmap: Vec<u64>,
}

/// Cuts what is not plugged out of the ranges.
pub(super) fn only(
    ranges: Vec<PhysicalRange>,
    tail: &Tail,
) -> Result<Vec<PhysicalRange>, LayoutError> {
    let devices = devices(tail)?;
    let mut kept = Vec::new();
    for range in ranges {
        match devices
            .iter()
            .find(|device| range.block.starts_with(&device.path))
        {
            Some(device) => device.cut(&range, &mut kept)?,
            None => kept.push(range),
        }
    }
    Ok(kept)
}

/// What is plugged of all devices, where their own state says that it lies.
pub(super) fn all(blocks: &[(&str, u64)], tail: &Tail) -> Result<Vec<PhysicalRange>, LayoutError> {
    let mut kept = Vec::new();
    for device in devices(tail)? {
        let mut owned = blocks
            .iter()
            .filter(|(name, _)| name.starts_with(&device.path));
        let (Some((block, len)), None) = (owned.next(), owned.next()) else {
            return Err(LayoutError::Unknown(format!(
                "which RAM block is that of the virtio-mem device at {:?}",
                device.path
            )));
        };
        let whole = PhysicalRange {
            address: device.address,
            len: *len,
            block: (*block).into(),
            offset: 0,
        };
        device.cut(&whole, &mut kept)?;
    }
    Ok(kept)
}

fn devices(tail: &Tail) -> Result<Vec<Plugged>, LayoutError> {
    let mut devices: Vec<Plugged> = Vec::new();
    for name in SECTIONS {
        let Some(states) = tail.states(name) else {
            return Err(LayoutError::Unknown(
                "the device sections and QEMU's description of them do not fit".into(),
            ));
        };
        for state in states {
            let path = state.section.name.strip_suffix(name).unwrap_or_default();
            // What an early section says is not said again.
            if devices.iter().all(|device| device.path != path) {
                devices.push(Plugged::of(&state, path).ok_or_else(|| {
                    LayoutError::Unknown(format!(
                        "{:?} does not say what is plugged",
                        state.section.name
                    ))
                })?);
            }
        }
    }
    Ok(devices)
}

impl Plugged {
    fn of(state: &DeviceState, path: &str) -> Option<Self> {
        let (words, _) = state.field("bitmap")?.as_chunks::<8>();
        let address = state.number("addr")?;
        let block_size = state.number("block_size")?;
        let valid = block_size.is_power_of_two() && block_size >= MIN_BLOCK;
        (valid && !path.is_empty()).then(|| Self {
            path: path.into(),
            address,
            block_size,
            bitmap: words.iter().map(|word| u64::from_be_bytes(*word)).collect(),
        })
    }

    fn is_plugged(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64)
            .ok()
            .and_then(|at| self.bitmap.get(at));
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Adds the plugged pieces of a range, in order.
    fn cut(&self, range: &PhysicalRange, kept: &mut Vec<PhysicalRange>) -> Result<(), LayoutError> {
        let odd = || {
            LayoutError::Range(format!(
                "virtio-mem at {:#x} reaches beyond all addresses",
                self.address
            ))
        };
        let end = range.offset.checked_add(range.len).ok_or_else(odd)?;
        let bits = self.bitmap.len() as u64 * 64;
        let mut number = range.offset / self.block_size;
        while number < bits && number.saturating_mul(self.block_size) < end {
            let plugged = self.is_plugged(number);
            let first = number;
            while number < bits
                && number.saturating_mul(self.block_size) < end
                && self.is_plugged(number) == plugged
            {
                number += 1;
            }
            if !plugged {
                continue;
            }
            if kept.len() >= MAX_RANGES {
                return Err(LayoutError::Range(format!(
                    "there are more than {MAX_RANGES} pieces of memory"
                )));
            }
            let offset = (first * self.block_size).max(range.offset);
            kept.push(PhysicalRange {
                address: range
                    .address
                    .checked_add(offset - range.offset)
                    .ok_or_else(odd)?,
                len: number.saturating_mul(self.block_size).min(end) - offset,
                block: range.block.clone(),
                offset,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugged_pieces_are_runs_of_bits_within_the_range() {
        let device = Plugged {
            path: "dev/".into(),
            address: 1 << 32,
            block_size: 2 << 20,
            bitmap: vec![0b1101, 1],
        };
        let range = PhysicalRange {
            address: (1 << 32) + (1 << 20),
            len: 512 << 20,
            block: "dev/mem".into(),
            offset: 1 << 20,
        };
        let mut kept = Vec::new();
        device.cut(&range, &mut kept).unwrap();
        let short: Vec<_> = kept
            .iter()
            .map(|range| (range.offset >> 20, range.len >> 20))
            .collect();
        assert_eq!(short, [(1, 1), (4, 4), (128, 2)]);
        assert!(
            kept.iter()
                .all(|range| range.address == (1 << 32) + range.offset)
        );
        let beyond = PhysicalRange {
            address: u64::MAX - 5,
            ..range
        };
        assert!(device.cut(&beyond, &mut Vec::new()).is_err());
    }
}
