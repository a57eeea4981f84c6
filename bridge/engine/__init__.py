"""The only room that knows both sides: it hears of changes, asks `core` what they mean and has `kube` write them."""
