//! virtio-mem: of its memory only what the guest has plugged is there.

use super::{LayoutError, PhysicalRange};
use crate::{DeviceState, Tail};

/// Sections of the device, with the memory's state in them: newer machines send it before the RAM.
const SECTIONS: [&str; 2] = ["virtio-mem-device-early", "virtio-mem-device"];

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
pub(super) fn only(ranges: Vec<PhysicalRange>, tail: &Tail) -> Result<Vec<PhysicalRange>, LayoutError> {
    let devices = devices(tail)?;
    let mut kept = Vec::new();
    for range in ranges {
        match devices
            .iter()
            .find(|device| range.block.starts_with(&device.path))
        {
            Some(device) => device.cut(&range, &mut kept),
            None => kept.push(range),
        }
    }
    Ok(kept)
}

/// What is plugged of all devices, where their own state says that it lies.
pub(super) fn all(blocks: &[(&str, u64)], tail: &Tail) -> Result<Vec<PhysicalRange>, LayoutError> {
    let mut kept = Vec::new();
    for device in devices(tail)? {
        let mut owned = blocks.iter().filter(|(name, _)| name.starts_with(&device.path));
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
        device.cut(&whole, &mut kept);
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
                    LayoutError::Unknown(format!("{:?} does not say what is plugged", state.section.name))
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
        let block_size = state.number("block_size").filter(|size| size.is_power_of_two())?;
        (!path.is_empty()).then(|| Self {
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

    /// Adds the plugged pieces of a range, in order; neighbours are joined later.
    fn cut(&self, range: &PhysicalRange, kept: &mut Vec<PhysicalRange>) {
        let end = range.offset.saturating_add(range.len);
        let last = (self.bitmap.len() as u64 * 64).saturating_mul(self.block_size);
        let mut at = range.offset;
        while at < end.min(last) {
            let number = at / self.block_size;
            let next = ((number + 1) * self.block_size).min(end);
            if self.is_plugged(number) {
                kept.push(PhysicalRange {
                    address: range.address + (at - range.offset),
                    len: next - at,
                    block: range.block.clone(),
                    offset: at,
                });
            }
            at = next;
        }
    }
}
