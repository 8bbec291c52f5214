module contend

go 1.19
