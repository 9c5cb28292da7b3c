//! Whether there is a device, and if not, what is missing.
//!
//! cudarc panics where the library is absent, so it is asked only after this has looked.

use std::fmt;

use super::driver::{Code, Driver};

/// Why there is no CUDA device to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaUnavailable {
    /// The driver's library is not installed; what the system's loader says.
    NoLibrary {
        /// In its own words.
        detail: String,
    },
    /// The library is the toolkit's stub, which is there to link against and does nothing.
    Stub,
    /// The driver is there, and no device.
    NoDevice,
    /// There is no device of this number.
    NoSuchDevice {
        /// The number that was asked for, from 0 on.
        ordinal: usize,
        /// How many devices there are.
        count: usize,
    },
    /// The driver is older than CUDA 11.2.
    TooOld {
        /// The first function that it lacks.
        missing: &'static str,
    },
    /// The device cannot do what the options ask for.
    Unsupported {
        /// What that is.
        what: &'static str,
    },
    /// The driver refused.
    Driver {
        /// What was asked of it.
        call: &'static str,
        /// Its answer.
        code: Code,
    },
}

impl fmt::Display for CudaUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary { detail } => {
                write!(f, "no NVIDIA driver is installed (libcuda was not found: {detail})")
            }
            Self::Stub => f.write_str(
                "libcuda is the toolkit's stub, not a driver: take its folder off the library path",
            ),
            Self::NoDevice => f.write_str("the NVIDIA driver finds no device"),
            Self::NoSuchDevice { ordinal, count } => {
                write!(f, "there is no CUDA device {ordinal}: there are {count}, from 0 on")
            }
            Self::TooOld { missing } => {
                write!(f, "the NVIDIA driver is older than CUDA 11.2: it has no {missing}")
            }
            Self::Unsupported { what } => write!(f, "the CUDA device does not support {what}"),
            Self::Driver { call, code } => write!(f, "the NVIDIA driver refused {call}: {code}"),
        }
    }
}

impl std::error::Error for CudaUnavailable {}

impl CudaUnavailable {
    /// Names the call that gave a code; some codes say more than that.
    pub(super) fn at(call: &'static str) -> impl Fn(Code) -> Self {
        move |code| match code {
            Code::STUB_LIBRARY => Self::Stub,
            Code::NO_DEVICE => Self::NoDevice,
            code => Self::Driver { call, code },
        }
    }
}

/// Finds the driver and its device of that number; returns the driver's name for it.
pub(super) fn find(ordinal: usize) -> Result<(&'static Driver, i32), CudaUnavailable> {
    let driver = Driver::get()?;
    driver.init().map_err(CudaUnavailable::at("cuInit"))?;
    let count = driver.device_count().map_err(CudaUnavailable::at("cuDeviceGetCount"))?;
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(CudaUnavailable::NoDevice);
    }
    let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
    let number = number.ok_or(CudaUnavailable::NoSuchDevice { ordinal, count })?;
    let device = driver.device(number).map_err(CudaUnavailable::at("cuDeviceGet"))?;
    Ok((driver, device))
}

/// How many CUDA devices there are.
///
/// # Errors
/// [`CudaUnavailable`] if there is no driver to ask.
pub fn device_count() -> Result<usize, CudaUnavailable> {
    let driver = Driver::get()?;
    driver.init().map_err(CudaUnavailable::at("cuInit"))?;
    let count = driver.device_count().map_err(CudaUnavailable::at("cuDeviceGetCount"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}
