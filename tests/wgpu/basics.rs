//! One allocation, one scope, one transfer at a time.

use aquifer::GpuVec;

use super::allocator;

#[test]
fn what_is_uploaded_comes_back() {
    let Some((_, memory)) = allocator() else { return };
    let values: Vec<u32> = (0..10_000).collect();
    let vec = GpuVec::from_slice(&memory, &values).expect("room");
    assert_eq!(vec.download().expect("there"), values);
    let odd: Vec<u8> = (0..251).collect();
    let bytes = GpuVec::from_slice(&memory, &odd).expect("room");
    assert_eq!(bytes.download().expect("there"), odd);
    let other = GpuVec::<u32>::zeroed(&memory, values.len()).expect("room");
    assert!(other.download().expect("there").iter().all(|&value| value == 0));
    vec.copy_to(&other).expect("room for the way");
    assert_eq!(other.download().expect("there"), values);
    memory.verify();
    drop((vec, other, bytes));
    memory.empty_cache();
    assert_eq!((memory.memory_reserved(), memory.backend().used_bytes()), (0, 0));
}

#[test]
fn a_scope_has_its_memory_back_at_once() {
    let Some((_, memory)) = allocator() else { return };
    let mut encoder = memory.device().create_command_encoder(&Default::default());
    let mut scope = memory.begin(&mut encoder);
    let first = scope.allocate(64 << 10).expect("room");
    let place = (first.offset(), first.segment().buffer().clone());
    scope.upload(&mut encoder, &first, 0, &[1; 1024]).expect("room");
    let before = scope.download(&mut encoder, &first).expect("room");
    drop(first);
    let second = scope.allocate(64 << 10).expect("room");
    assert_eq!((second.offset(), second.segment().buffer().clone()), place);
    scope.upload(&mut encoder, &second, 0, &[2; 1024]).expect("room");
    let after = scope.download(&mut encoder, &second).expect("room");
    scope.submit(encoder);
    assert!(before.wait().expect("submitted")[..1024].iter().all(|&byte| byte == 1));
    assert!(after.wait().expect("submitted")[..1024].iter().all(|&byte| byte == 2));
    memory.verify();
}
