module consul-endpoints-bridge/lab/pause

go 1.26.0
