module shim

go 1.15
