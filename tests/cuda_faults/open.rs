//! Opening a device while one of its calls fails: a clear answer, and nothing of ours is left.

use aquifer::CudaAllocator;
use aquifer::backend::{Cuda, CudaOptions, CudaSource, CudaUnavailable};

use crate::cuda::{Call, Fake, Live, Options, code};
use crate::judge::calls_of;

fn fresh() -> Fake {
    Fake::fresh(Options { devices: 2, ..Options::default() })
}

fn open(options: &CudaOptions) -> Result<CudaAllocator, CudaUnavailable> {
    let backend = Cuda::new(0, options)?;
    let config = CudaAllocator::recommended_config(backend.source());
    Ok(CudaAllocator::with(backend, config).expect("a sound configuration"))
}

/// What cudarc keeps when one of its own calls fails.
fn leaks_of_cudarc(calls: &[Call], nth: usize) -> Live {
    let retained = calls.iter().position(|call| call.symbol == "cuDevicePrimaryCtxRetain");
    // `CudaContext::new` asks for an attribute when it has retained the context, and does not
    // release it if that fails. `CudaContext::drop` does not try again.
    let is_lost = match calls[nth].symbol.as_str() {
        "cuDeviceGetAttribute" => retained.is_some_and(|retained| nth == retained + 1),
        "cuDevicePrimaryCtxRelease_v2" => true,
        _ => false,
    };
    Live { contexts: u64::from(is_lost), ..Live::default() }
}

/// Every call of opening fails once; the answer is an allocator, or names the call.
fn sweep(options: &CudaOptions) {
    let fake = fresh();
    let mut opened = None;
    let opening = calls_of(&fake, || opened = open(options).ok());
    let source = opened.as_ref().expect("undisturbed").backend().source();
    let closing = calls_of(&fake, || drop(opened));
    fake.assert_no_leaks();
    drop(fake);
    assert!(opening.len() > 8 && closing.len() > 2, "{opening:?} {closing:?}: nothing to break");
    for nth in 0..opening.len() {
        for code in [code::OUT_OF_MEMORY, code::INVALID_VALUE] {
            let fake = fresh();
            fake.fail_at(nth as u64 + 1, code);
            judge(open(options), source, code, &opening[nth]);
            assert_eq!(fake.live(), leaks_of_cudarc(&opening, nth), "{:?}", opening[nth]);
            // It was that once: the next one opens.
            drop(open(options).expect("the driver works again"));
        }
        let fake = fresh();
        fake.lose_at(nth as u64 + 1);
        if let Err(error) = open(options) {
            let told = matches!(&error, CudaUnavailable::Driver { code, .. } if code.is_loss());
            assert!(told, "{:?} after the loss: {error}", opening[nth]);
        }
    }
    for nth in 0..closing.len() {
        let fake = fresh();
        let opened = open(options).expect("undisturbed");
        fake.fail_at(nth as u64 + 1, code::INVALID_VALUE);
        drop(opened);
        assert_eq!(fake.live(), leaks_of_cudarc(&closing, nth), "{:?}", closing[nth]);
    }
}

fn judge(
    opened: Result<CudaAllocator, CudaUnavailable>,
    source: CudaSource,
    code: i32,
    refused: &Call,
) {
    match opened {
        Ok(memory) => {
            assert_eq!(memory.backend().source(), source, "{refused:?} changed the source");
            memory.allocate(1000).expect("an allocator that works");
        }
        Err(CudaUnavailable::Driver { call, code: told }) => {
            // A group of calls goes by the name of the one that matters.
            let group = match refused.symbol.as_str() {
                "cuThreadExchangeStreamCaptureMode" => "cuCtxSetCurrent",
                "cuMemPoolSetAttribute" => "cuMemPoolCreate",
                symbol => symbol,
            };
            let named = group.starts_with(call) || call == "cuDevicePrimaryCtxRetain";
            assert!(told.0 == code && named, "{refused:?}: {call}");
        }
        Err(other) => panic!("{refused:?} answers {code}, and that means: {other}"),
    }
}

#[test]
fn opening_what_there_is() {
    sweep(&CudaOptions::default());
}

#[test]
fn opening_pages_with_a_peer_for_export() {
    let source = Some(CudaSource::Virtual);
    sweep(&CudaOptions { source, peers: vec![1], exportable: true });
}

#[test]
fn opening_a_pool() {
    sweep(&CudaOptions { source: Some(CudaSource::Pool), ..CudaOptions::default() });
}

#[test]
fn opening_plain_memory() {
    sweep(&CudaOptions { source: Some(CudaSource::Plain), ..CudaOptions::default() });
}

#[test]
fn tuning_the_default_pool() {
    let fake = fresh();
    let calls = calls_of(&fake, || aquifer::tune_default_pool(0).expect("undisturbed"));
    drop(fake);
    for nth in 1..=calls.len() as u64 {
        let fake = fresh();
        fake.fail_at(nth, code::INVALID_VALUE);
        let told = aquifer::tune_default_pool(0).expect_err("the call was refused");
        assert!(
            matches!(told, CudaUnavailable::Driver { code, .. } if code.0 == code::INVALID_VALUE)
        );
        fake.assert_no_leaks();
        aquifer::tune_default_pool(0).expect("the driver works again");
    }
}
